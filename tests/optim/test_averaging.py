"""``schedule_free`` against the authors' implementation, and the average that it evaluates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import optim
from fnloop.schedules.base import Schedule, clip
from tests.optim.published import SHAPES, check, run


@fl.tree
class warm(Schedule):
    """The warm-up of the authors, which begins above zero."""

    peak: Any
    steps: int

    def compute(self, step):
        return self.peak * clip((step + 1) / self.steps, 0.0, 1.0)


# schedulefree 1.4.1: SGDScheduleFree and AdamWScheduleFree, twelve steps; y, and x after eval().
PUBLISHED = {
    # lr=0.3, momentum=0.8, weight_decay=0.1
    "sgd": (
        optim.schedule_free(optim.chain(optim.add_decayed_weights(0.1), optim.sgd(0.3)), beta=0.8),
        {
            "w": [0.0049688485, -0.3754461156, -0.0017897385, 0.5915569948],
            "b": [-0.3226428748, -0.0481175851, 0.0009950569, 0.3262126865],
            "k": [-0.3505949904, 0.0010301309, 0.0038652373, 0.6976481789],
        },
        {
            "w": [-0.0928716317, -0.3633375682, -0.1140002608, 0.6424797312],
            "b": [-0.3161235898, -0.0645220756, -0.1055137138, 0.3394559854],
            "k": [-0.3411364372, -0.1054058408, -0.096492275, 0.7272805384],
        },
    ),
    # lr=0.3, warmup_steps=5, r=0.5, weight_lr_power=1.5
    "sgd, warmed up": (
        optim.schedule_free(optim.sgd(warm(0.3, 5)), r=0.5, power=1.5),
        {
            "w": [-0.1074598327, -0.5040109467, -0.040580152, 0.9919365428],
            "b": [-0.4808646688, -0.3475710356, -0.023441798, 0.5937895018],
            "k": [-0.4922616015, -0.017429082, -0.0189320824, 1.0900397366],
        },
        {
            "w": [-0.1414100834, -0.5304802722, -0.0757553964, 1.0721184687],
            "b": [-0.5085538387, -0.380822712, -0.0739128074, 0.6396218007],
            "k": [-0.5193597084, -0.0581059262, -0.0654760023, 1.1708984435],
        },
    ),
    # lr=0.05, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=4
    "adamw": (
        optim.schedule_free(optim.adamw(warm(0.05, 4), b1=0.0, b2=0.99, weight_decay=0.1)),
        {
            "w": [0.0270035277, 0.6291376543, -0.1504697628, 1.606908767],
            "b": [0.538800795, 0.2773396759, -0.7251169616, 0.9449964023],
            "k": [0.5655346132, -0.3425063243, -0.5543489007, 1.7202089286],
        },
        {
            "w": [0.0230047123, 0.6494723285, -0.163003862, 1.6584329458],
            "b": [0.5577533206, 0.287705836, -0.7423709854, 0.9720998378],
            "k": [0.5849261028, -0.360528557, -0.5726510494, 1.7747435832],
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_the_authors(name):
    optimizer, y, x = PUBLISHED[name]
    params, memory = run(optimizer, 12)
    check(params, y)
    check(memory["schedule_free"]["average"], x)


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def arrays(n=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return x, x[:, :3].argmax(1)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def step_of(optimizer=None, **options):
    inner = optim.adamw(0.05, b1=0.0) if optimizer is None else optimizer
    return fl.pipe(loss, fl.grad, fl.update(optim.schedule_free(inner, **options)))


def trained(step, steps=30):
    data = fl.Batches(arrays(), batch_size=8)
    return fl.fit(step, step.init(net, seed=0), data, steps=steps, progress=False)[0]


def test_the_average_is_evaluated_exported_and_has_statistics_of_its_own():
    state = trained(step_of())
    with pytest.raises(ValueError, match="these averaged parameters have no running statistics"):
        fl.evaluate(loss, state, fl.Batches(arrays(), 8), params="schedule_free")
    data = fl.Batches(arrays(), batch_size=8)
    state = fl.refresh_batchnorm(loss, state, data, params="schedule_free")
    found = fl.evaluate(loss, state, data, params="schedule_free")
    model = fl.to_module(state, params="schedule_free").eval()
    average = state["update"]["schedule_free"]["average"]
    assert torch.equal(model[0].weight, average["0.weight"])
    assert not torch.equal(average["0.weight"], state.params["0.weight"])
    with torch.no_grad():
        assert found["loss"] == pytest.approx(float(loss(model, arrays())), rel=1e-5)
    assert found["loss"] < 0.6


def test_parameters_without_the_optimizer_are_the_live_ones():
    parts = {"first": optim.schedule_free(optim.sgd(0.1)), "rest": optim.sgd(0.1)}
    optimizer = optim.by_label(parts, {"0": "first", "*": "rest"})
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    state = trained(step, 5)
    model = fl.to_module(
        fl.refresh_batchnorm(loss, state, [arrays()], params="schedule_free"),
        params="schedule_free",
    )
    assert torch.equal(model[3].weight, state.params["3.weight"])
    assert not torch.equal(model[0].weight, state.params["0.weight"])


def test_averages_of_several_optimizers_are_put_together_if_they_can_be():
    def players(body, head):
        step = fl.sequence(
            **{
                name: fl.pipe(loss, fl.grad(only=only), fl.update(optim.schedule_free(inner)))
                for name, only, inner in (("body", *body), ("head", *head))
            }
        )
        return step(step.init(net, seed=0), arrays())[0]

    state = players(("0", optim.sgd(0.1)), ("3", optim.sgd(0.2)))
    for name in ("body", "head"):
        for each, average in state[f"{name}/update"]["schedule_free"]["average"].items():
            fresh = fl.refresh_batchnorm(loss, state, [arrays()], params="schedule_free")
            model = fl.to_module(fresh, params="schedule_free")
            assert torch.equal(model.get_parameter(each), average)
    state = players(("*", optim.sgd(0.1)), ("3", optim.sgd(0.2)))
    with pytest.raises(ValueError, match=r"two optimizers of that name keep an average of 3\.bias"):
        fl.evaluate(loss, state, [arrays()], params="schedule_free", statistics="live")


def test_the_rate_that_fl_scale_has_lowered_weighs_less():
    step = step_of(optim.sgd(0.1))
    state, _ = step(step.init(net, seed=0), arrays())
    lower, _ = step(fl.scale(state, "sgd.lr", 0.5), arrays())
    own = lower["update"]["schedule_free"]
    assert float(own["total"]) == pytest.approx(2 * 0.1**2)  # the largest rate so far counts
    rest, metrics = step(fl.scale(step.init(net, seed=0), "sgd.lr", 0.0), arrays())
    assert fl.tree_equal(rest["update"]["schedule_free"]["z"], rest.params)
    assert rest.params.all_finite() and float(metrics["sgd.lr"]) == 0


def test_half_precision_keeps_both_sequences_in_float32():
    optimizer = optim.schedule_free(optim.sgd(1e-4))
    params = fl.Tensors({n: torch.ones(s, dtype=torch.bfloat16) for n, s in SHAPES.items()})
    memory = optimizer.init(params)
    for t in range(50):
        grads = params.wide()
        params, memory = optimizer.apply(grads, memory, params, t, True)
    own = memory["schedule_free"]
    assert params["w"].dtype == torch.bfloat16 and own["z"]["w"].dtype == torch.float32
    torch.testing.assert_close(own["z"]["w"], torch.full((4, 3), 1 - 50e-4), rtol=1e-4, atol=0)


def test_errors():
    with pytest.raises(TypeError, match=r"schedule_free takes an optimizer.*got clip_by_norm"):
        optim.schedule_free(optim.clip_by_norm(1.0))
    with pytest.raises(TypeError, match="lbfgs evaluates the loss at other parameters"):
        optim.schedule_free(optim.lbfgs())
    with pytest.raises(ValueError, match=r"adamw\(\) has b1=0.9. Switch that off.*b1=0.0"):
        optim.schedule_free(optim.chain(optim.clip_by_norm(1.0), optim.adamw()))
    state = fl.pipe(loss, fl.grad, fl.update(optim.sgd(0.1))).init(net)
    with pytest.raises(ValueError, match="no such slot"):
        fl.evaluate(loss, state, [arrays()], params="schedule_free")
