"""A loss that says that its batch is skipped: ``fl.Mean(0, 0)``, or a weight of zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def batch(n=8):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def small_is_skipped(model, x):
    """By what is known without a look at values: it compiles."""
    if len(x) < 4:
        return fl.Mean(0, 0)
    return model(x).square().mean()


def negative_is_skipped(model, x):
    """By values: a selection, which compiles."""
    loss = model(x).square().mean()
    weight = torch.where(x.sum() < 0, 0, len(x))
    return fl.Mean(weight * loss, weight), {"size": fl.Mean(weight * x.abs().mean(), weight)}


def skips(loss, x, compiled=False, grad=()):
    step = fl.pipe(loss, fl.grad, *grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    state = step.init(model, seed=0)
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state, metrics = step(state, batch().abs())
    assert float(metrics["skipped"]) == 0 and int(state.step) == 1
    after, metrics = step(state, x)
    assert after == state.replace(calls=torch.tensor(2))
    assert float(metrics["skipped"]) == 1
    assert all(m.weight == 0 for m in metrics.values() if isinstance(m, fl.Mean))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.lightning("H1")
def test_without_a_loss_that_was_computed(compiled):
    skips(small_is_skipped, batch(3), compiled)


@pytest.mark.parametrize("compiled", [False, True])
def test_by_a_weight_that_is_a_tensor(compiled):
    skips(negative_is_skipped, -batch().abs(), compiled)


@pytest.mark.parametrize("grad", [[fl.accumulate(2)], [fl.amp("bf16")]], ids=["parts", "amp"])
def test_in_every_micro_batch(grad):
    skips(small_is_skipped, batch(3), grad=grad)


def test_a_loss_scale_stays_where_it_is():
    step = fl.pipe(small_is_skipped, fl.grad, fl.amp("fp16"), fl.update(fl.optim.sgd(0.1)))
    state = step.init(model, seed=0)
    after, _ = step(state, batch(3))
    assert after["amp"]["scale"] == state["amp"]["scale"] and after.params == state.params


def test_a_micro_batch_that_skips_leaves_the_mean_of_the_others():
    def loss(model, x):
        if len(x) < 4:
            return fl.Mean(0, 0)
        return model(x[:, :3]).square().mean()

    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.adam(0.1)))
    plain = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(0.1)))
    state = step.init(model, seed=0)
    expected, reported = plain(state, batch())
    parts = fl.data.Micro((batch(2), batch(), batch(3)))
    after, metrics = step(state, parts)
    assert fl.tree_diff(after.params, expected.params) == ""
    assert float(metrics["loss"]) == pytest.approx(float(reported["loss"]))
    assert float(metrics["loss"].weight) == 8


def test_under_vmap_each_member_is_skipped_by_itself():
    step = fl.pipe(negative_is_skipped, fl.grad, fl.update(fl.optim.adamw(0.1)))
    state = step.init(model, seed=0)
    x = torch.stack([batch().abs(), -batch().abs()])
    after, metrics = torch.func.vmap(step, in_dims=(None, 0))(state, x)
    assert metrics["skipped"].value().tolist() == [0, 1] and after.step.tolist() == [1, 0]
    assert torch.equal(after.params["0.weight"][1], state.params["0.weight"])


def test_metrics_of_a_skipped_batch_do_not_count_in_evaluation():
    data = fl.Batches(batch(18), batch_size=8, shuffle=False)  # 8, 8 and 2
    step = fl.pipe(small_is_skipped, fl.grad, fl.update(fl.optim.sgd(0.0)))
    state, _ = fl.fit(step, step.init(model, seed=0), data, epochs=1)
    assert int(state.step) == 2 and int(state.calls) == 3
    whole = fl.evaluate(small_is_skipped, state, data)["loss"]
    parts = [float(fl.base.loss_at(step.inner, state, x)) for x in batch(18)[:16].split(8)]
    assert whole == pytest.approx(sum(parts) / 2)


class Players(nn.Module):
    def __init__(self):
        super().__init__()
        self.G, self.D = nn.Linear(2, 3), nn.Linear(3, 1)


def fake(model, x):
    return model.D(model.G(torch.randn(len(x), 2)))


def g_loss(model, x):
    return F.softplus(-fake(model, x)).mean()


def d_loss(model, x):
    """Only while it is told by the batch."""
    if len(x) < 4:
        return fl.Mean(0, 0)
    return (F.softplus(-model.D(x)) + F.softplus(fake(model, x))).mean()


def d_loss_by_value(model, x):
    """Not where it is good at it already, as balance between the two is kept."""
    loss = (F.softplus(-model.D(x)) + F.softplus(fake(model, x))).mean()
    weight = torch.where(loss < 100, 0, len(x))
    return fl.Mean(weight * loss, weight)


@pytest.mark.parametrize(("loss", "rows"), [(d_loss, 3), (d_loss_by_value, 8)])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_discriminator_that_skips_by_its_loss_leaves_the_generator_s_clock_alone(
    loss, rows, compiled
):
    def part(loss, only):
        lr = fl.schedules.linear(0.1, 0.0, steps=4)
        return fl.pipe(loss, fl.grad(only=only), fl.update(fl.optim.adam(lr)), fl.ema(0.9))

    step = fl.sequence(discriminator=part(loss, "D"), generator=part(g_loss, "G"))
    state = first = step.init(Players, seed=0)
    step = fl.compile(step, backend="aot_eager") if compiled else step
    for _ in range(4):
        state, metrics = step(state, batch(rows))
    assert int(state["discriminator/step"]) == 0 and int(state["generator/step"]) == 4
    assert float(metrics["generator/adam.lr"]) == pytest.approx(0.1 / 4)
    assert float(metrics["discriminator/skipped"]) == 1 and float(metrics["skipped"]) == 0
    assert metrics["discriminator/loss"].weight == 0
    for name in ("discriminator/update", "discriminator/ema"):
        assert state[name] == first[name]
    assert torch.equal(state.params["D.weight"], first.params["D.weight"])
    assert not torch.equal(state.params["G.weight"], first.params["G.weight"])


@pytest.mark.lightning("H1")
def test_none_is_an_error_that_says_how_to_skip():
    step = fl.pipe(lambda model, x: None, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(
        TypeError, match=r"returned NoneType.*To skip a batch, return fl.Mean\(0, 0\)"
    ):
        step(step.init(model), batch())
