"""A gradient stage called again in a step: other parameters, the same randomness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fnloop as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.norm(self.first(x)).tanh(), 0.5))


def loss(model, batch):
    return model(batch).square().mean()


def batch(n=6):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


@fl.tree
class Thrice(fl.base.GradStage):
    """Reports the loss at the parameters three times, twice with the gradient; and at others."""

    wraps = "grad"
    label = "thrice"
    inner: Any

    def __call__(self, state, x):
        after, grads = self.inner(state, x)
        _, again = self.inner(state, x)
        there = state.params.scale(0.5)
        moved = self.inner(state.replace(params=there), x)[1].metrics["loss"].value()
        same = torch.stack([(a == b).all() for a, b in pairs(grads.mean, again.mean)]).all()
        report = {
            "same": fl.Last(same),
            "again": fl.Last(fl.base.loss_at(self.inner, state, x)),
            "moved": fl.Last(moved),
            "at": fl.Last(fl.base.loss_at(self.inner, state, x, there)),
        }
        return after, grads.replace(metrics={**grads.metrics, **report})


def pairs(a, b):
    return [(a[name], b[name]) for name in a]


INNER = {
    "grad": [],
    "accumulate": [fl.accumulate(3)],
    "bf16": [fl.amp("bf16")],
    "fp16": [fl.accumulate(2), fl.amp("fp16", init_scale=8.0)],
    "some": [],
}


def pipeline(name, *outer):
    grad = fl.grad(loss, only="last") if name == "some" else fl.grad(loss)
    step = fl.pipe(grad, *INNER[name], *outer, fl.update(fl.optim.sgd(0.1)))
    return fl.sequence(a=step, b=step) if name == "some" else step


COMPILED = {"accumulate"}
CASES = [(name, compiled) for name in INNER for compiled in (False, name in COMPILED)]


@pytest.mark.parametrize(("name", "compiled"), sorted(set(CASES)))
def test_masks_are_the_same_and_statistics_are_those_of_one_evaluation(name, compiled):
    step, plain = pipeline(name, Thrice), pipeline(name)
    state = step.init(Net, seed=3)
    run = fl.compile(step, backend="aot_eager") if compiled else step
    after, metrics = run(state, batch())
    expected, others = plain(state, batch())
    for part in ("a/", "b/") if name == "some" else ("",):
        assert float(metrics[f"{part}loss"]) == pytest.approx(float(others[f"{part}loss"]))
        assert bool(metrics[f"{part}same"].value())
        assert float(metrics[f"{part}again"]) == pytest.approx(float(metrics[f"{part}loss"]))
        assert float(metrics[f"{part}at"]) == pytest.approx(float(metrics[f"{part}moved"]))
        assert float(metrics[f"{part}at"]) != float(metrics[f"{part}loss"])
    for before, now in ((expected.buffers, after.buffers), (expected.params, after.params)):
        for a, b in pairs(before, now):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_it_takes_some_parameters_by_name_and_leaves_the_state_alone():
    stage = fl.grad(loss)
    state = stage.init(Net, seed=0)
    kept = fl.tree_map(torch.clone, state)
    zero = {name: torch.zeros_like(state.params[name]) for name in ("last.weight", "last.bias")}
    assert fl.base.loss_at(stage, state, batch(), zero) == 0
    assert fl.base.loss_at(stage, state, batch()).dtype == torch.float64
    assert state == kept


def test_it_has_no_backward_pass():
    passes = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            passes.append(1)
            return g

    stage = fl.accumulate(2)(fl.grad(lambda model, x: Watched.apply(model(x)).mean()))
    state = stage.init(nn.Linear(4, 1))
    fl.base.loss_at(stage, state, batch())
    assert passes == []
    stage(state, batch())
    assert passes == [1, 1]


def test_it_has_a_derivative():
    stage = fl.grad(lambda model, x: model(x).pow(3).mean())
    state = stage.init(nn.Linear(4, 1).double())
    x = batch().double()
    weight = state.params["weight"].clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(
        fl.base.loss_at(stage, state, x, {"weight": weight}), [weight]
    )
    by_func = torch.func.grad(lambda w: fl.base.loss_at(stage, state, x, {"weight": w}))(weight)
    expected = stage(state, x)[1].mean["weight"]
    torch.testing.assert_close(by_autograd, expected)
    torch.testing.assert_close(by_func, expected)


def test_members_of_a_population_have_each_their_loss():
    stage = fl.accumulate(2)(fl.grad(loss))
    states = [stage.init(lambda: nn.Linear(4, 1), seed=seed) for seed in range(2)]
    stacked = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    x = batch()
    together = torch.func.vmap(lambda state: fl.base.loss_at(stage, state, x))(stacked)
    alone = torch.stack([fl.base.loss_at(stage, state, x) for state in states])
    torch.testing.assert_close(together, alone)


def test_a_stage_that_reports_no_loss_is_told_to():
    def gradients(state, batch):
        after, grads = fl.grad(loss)(state, batch)
        return after, grads.replace(metrics={})

    stage = fl.stage(gradients, "grad")
    with pytest.raises(ValueError, match=r'has no fl.Mean "loss"'):
        fl.base.loss_at(stage, fl.grad(loss).init(Net), batch())
