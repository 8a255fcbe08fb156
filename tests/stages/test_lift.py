"""Bare functions as stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing


def loss(model, batch):
    return model(batch).square().mean()


def noisy(state, batch):
    """A gradient stage of one's own: the gradients of another, with noise from the key."""
    state, grads = fl.grad(loss)(state, batch)
    with fl.randomness(state, "noise"):
        mean = grads.mean.map_named(lambda g: g + 0.1 * torch.randn(g.shape))
    return state, grads.replace(mean=mean)


@pytest.mark.lightning("T34", "H7")
def test_a_gradient_stage_goes_into_a_pipeline():
    step = fl.pipe(
        fl.stage(noisy, "grad"), fl.accumulate(2), fl.update(fl.optim.sgd(0.1)), fl.ema(0.9)
    )
    state = step.init(nn.Linear(2, 1))
    batch = torch.ones(4, 2)
    testing.check_pure(step, state, batch)
    testing.check_repeatable(step, state, batch)
    testing.check_stable(step, state, batch)
    testing.check_skips(step, state, batch * torch.nan)


STATE = fl.grad(loss).init(nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("kind", "result", "message"),
    [
        ("grad", None, r"must return \(state, fl\.Grads\), got None"),
        ("grad", (STATE, {}), r"must return \(state, fl\.Grads\), got \(state, \{\}\)"),
        ("step", (STATE, 3), r"must return \(state, metrics\), got \(state, 3\)"),
        ("step", (1, {}), r"must return \(state, metrics\), got \('1', '\{\}'\)"),
    ],
)
def test_a_wrong_result(kind, result, message):
    with pytest.raises(TypeError, match=message):
        fl.stage(lambda s, x: result, kind)(STATE, None)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("value", [0.5, 3, torch.tensor(2.0), "text"], ids=str)
@pytest.mark.parametrize("kind", ["grad", "step"])
def test_a_bare_number_as_a_metric_is_refused_alike_wherever_it_runs(kind, value, compiled):
    def function(state, batch):
        if kind == "step":
            return state, {"gap": value}
        state, grads = fl.grad(loss)(state, batch)
        return state, grads.replace(metrics={**grads.metrics, "gap": value})

    step = fl.stage(function, kind)
    if kind == "grad":
        step = fl.pipe(step, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    run = fl.compile(step, backend="aot_eager") if compiled else step
    with pytest.raises(TypeError, match=r"The stage function reports 'gap' as .*fl\.Last\(value\)"):
        run(step.init(nn.Linear(2, 1)), torch.ones(4, 2))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_bare_number_from_a_stage_class_is_refused_too(compiled):
    @fl.tree
    class Gap(fl.base.GradStage):
        wraps = "grad"
        inner: object

        def __call__(self, state, x):
            state, grads = self.inner(state, x)
            return state, grads.replace(metrics={**grads.metrics, "gap": 0.5})

    step = fl.pipe(loss, fl.grad, Gap, fl.update(fl.optim.sgd(0.1)))
    run = fl.compile(step, backend="aot_eager") if compiled else step
    with pytest.raises(TypeError, match=r"reports 'gap' as 0\.5.*fl\.Last\(value\)"):
        next(fl.run(run, step.init(nn.Linear(2, 1)), [torch.ones(4, 2)], steps=1))


def test_a_gradient_stage_must_give_gradients():
    @fl.tree
    class Other(fl.base.GradStage):
        def __call__(self, state, x):
            return state, {}

    step = fl.pipe(Other(), fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(TypeError, match="update got dict from the gradient stage"):
        step(step.init(nn.Linear(2, 1)), torch.ones(4, 2))


def test_wrong_kind():
    with pytest.raises(ValueError, match='"grad", "step" or "callback"'):
        fl.stage(noisy, "loss")


def test_gradients_may_come_in_any_order():
    def backwards(state, batch):
        state, grads = fl.grad(loss)(state, batch)
        mean = fl.Tensors(dict(reversed(list(grads.mean.items()))))
        return state, grads.replace(mean=mean)

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    batch = torch.ones(4, 2)
    usual = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)))
    other = fl.pipe(fl.stage(backwards, "grad"), fl.update(fl.optim.adamw(0.1)))
    a, b = usual(usual.init(model), batch)[0], other(other.init(model), batch)[0]
    for name in a.params:
        torch.testing.assert_close(a.params[name], b.params[name])
    sorted_params = usual.init(model)
    sorted_params = sorted_params.replace(params=dict(reversed(list(sorted_params.params.items()))))
    c, _ = usual(sorted_params, batch)
    assert all(torch.equal(a.params[name], c.params[name]) for name in a.params)


def test_gradients_of_other_parameters_are_refused():
    def other(state, batch):
        state, grads = fl.grad(loss)(state, batch)
        return state, grads.replace(mean=fl.Tensors({"w": torch.ones(1)}))

    step = fl.pipe(fl.stage(other, "grad"), fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(ValueError, match="that are no trained parameters: w"):
        step(step.init(nn.Linear(2, 1)), torch.ones(4, 2))


def changing(change, only=None):
    def changed(state, batch):
        state, grads = fl.grad(loss, only=only)(state, batch)
        return state, grads.replace(mean=change(grads.mean))

    return fl.stage(changed, "grad")


def row_means(mean):
    return mean.map_named(lambda g: g.mean(0, keepdim=True))


@pytest.mark.parametrize(
    "optimizer",
    [
        fl.optim.sgd(0.1),
        fl.optim.adamw(0.1),
        fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.lion(0.1)),
        fl.optim.lbfgs(),
    ],
    ids=["sgd", "adamw", "chain", "lbfgs"],
)
@pytest.mark.parametrize("only", [None, "weight"])
def test_gradients_of_other_shapes_are_refused(optimizer, only):
    step = fl.pipe(changing(row_means, only), fl.update(optimizer))
    state = step.init(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"weight +\(1, 2\) +\(3, 2\)"):
        step(state, torch.ones(4, 2))


@pytest.mark.parametrize(
    "change",
    [
        row_means,
        lambda mean: fl.Tensors({name: g.expand(2, *g.shape) for name, g in mean.items()}),
        lambda mean: {**mean, "bias": mean["bias"].sum()},
    ],
    ids=["one row", "more rows", "a sum in a dict"],
)
@pytest.mark.parametrize(
    "around",
    [
        lambda step: step,
        lambda step: fl.compile(step, backend="aot_eager"),
        lambda step: fl.ensemble(step, 2),
    ],
    ids=["eager", "compiled", "ensemble"],
)
def test_gradients_of_other_shapes_are_refused_everywhere(change, around):
    step = around(fl.pipe(changing(change), fl.update(fl.optim.adamw(0.1))))
    state = step.init(lambda: nn.Linear(2, 3), seed=0)
    with pytest.raises(ValueError, match="gradients of other shapes"):
        step(state, torch.ones(4, 2))


def test_a_table_of_many_wrong_shapes_is_short():
    step = fl.pipe(changing(row_means), fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)]))
    with pytest.raises(ValueError, match="and 4 more") as raised:
        step(state, torch.ones(4, 2))
    assert str(raised.value).count("\n") == 11
