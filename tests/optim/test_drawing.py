"""Optimizers of one's own that draw random numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.optim.drawing import draws_inside


def net():
    return nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.2), nn.Tanh(), nn.Linear(9, 3))


def loss(model, batch):
    return model(batch).square().mean()


def batch():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@fl.tree
class ternary(fl.optim.Optimizer):
    """Gradients of three values (TernGrad, Wen et al., 2017): their mean is the same."""

    makes: ClassVar[str] = "gradients"
    draws: ClassVar[bool] = True
    name: str = "ternary"

    def update(self, grads, memory, params, step):
        def of_one(g):
            largest = g.abs().max()
            uniform = torch.rand_like(g, memory_format=torch.contiguous_format)
            return largest * g.sign() * (uniform * largest < g.abs())

        return grads.map_named(of_one), memory


@fl.tree
class around(fl.optim.Optimizer):
    """A combination of one's own, which says nothing of what it is around."""

    inner: Any
    name: str = "around"

    def names(self):
        return self.inner.names()

    def init(self, params):
        return self.inner.init(params)

    def update(self, grads, memory, params, step):
        return self.inner.update(grads, memory, params, step)


@fl.tree
class jumps(fl.optim.Optimizer):
    """Random search: it draws, and evaluates a loss that draws too."""

    evaluates: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    lr: Any = 0.1
    name: str = "jumps"

    def search(self, evaluate, loss, grads, memory, params, step, finite):
        (lr,) = self.at(step, "lr")
        for _ in range(2):
            there = params.map_named(lambda p: p + lr * torch.randn_like(p))
            value, _ = evaluate(there)
            better = (value < loss) & finite
            params, loss = there.where(better, params), torch.where(better, value, loss)
        return params, memory


@fl.tree
class slow(fl.optim.Optimizer):
    """It has a fused kernel, but not for these tensors."""

    lr: Any = 0.1
    name: str = "slow"

    def update(self, grads, memory, params, step):
        return grads.scale(-self.lr), memory

    def fused(self, grads, memory, params, step, finite):
        return None


STEPS = {
    "chain": fl.optim.chain(ternary(), fl.optim.adamw(0.1)),
    "inside of one that says nothing": around(fl.optim.chain(ternary(), fl.optim.sgd(0.1))),
    "masked": fl.optim.masked(fl.optim.chain(ternary(), fl.optim.sgd(0.1)), ["0"]),
    "schedule_free": fl.optim.schedule_free(
        fl.optim.by_label(
            {"a": fl.optim.chain(ternary(), fl.optim.sgd(0.1)), "b": fl.optim.sgd(0.1)},
            {"0.*": "a", "*": "b"},
        )
    ),
    "it evaluates": jumps(),
}
HOW = {"check_differentiable": "it jumps", "check_accumulates": "its loss draws"}


@pytest.mark.parametrize("name", STEPS)
def test_it_is_held_to_all_laws(name):
    step = fl.pipe(loss, fl.grad, fl.update(STEPS[name]))
    assert draws_inside(step.optimizer)
    fl.testing.check_laws(step, step.init(net, seed=0), batch(), leave_out=HOW)
    # As many members as there are rows, and a stream in a stream.
    fl.testing.check_vmaps(step, [step.init(net, seed=seed) for seed in range(4)], batch())


def test_the_mean_of_what_is_drawn_is_the_gradient():
    gradient = fl.Tensors({"w": torch.linspace(-1.0, 1.0, 9)})
    drawn = [ternary().update(gradient, {}, gradient, 0)[0]["w"] for _ in range(4000)]
    torch.testing.assert_close(torch.stack(drawn).mean(0), gradient["w"], rtol=0, atol=0.04)


def test_an_ensemble_draws_what_single_runs_draw():
    step = fl.pipe(loss, fl.grad, fl.update(STEPS["chain"]))
    many = fl.ensemble(step, 3)
    states = many.init(net, seed=5)
    for _ in range(2):
        states, _ = many(states, batch())
    for i in range(3):
        state = fl.member(many.init(net, seed=5), i)
        for _ in range(2):
            state, _ = step(state, batch())
        torch.testing.assert_close(dict(fl.member(states, i).params), dict(state.params))


def test_what_a_kernel_could_not_do_is_drawn_again_and_is_the_same():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.chain(ternary(), slow())))
    state = step.init(net, seed=0)
    once, _ = step(state, batch())
    donated, _, _ = step.writing(state, batch())
    assert fl.tree_equal(once.params, donated.params)


@fl.tree
class silent(ternary):
    draws: ClassVar[bool] = False


def test_drawing_without_saying_so_is_told():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.chain(silent(), fl.optim.sgd(0.1))))
    with pytest.raises(AssertionError, match="an optimizer that says draws = True"):
        fl.testing.check_pure(step, step.init(net), batch())
    with pytest.raises(fl.errors.CompileError, match="an optimizer of your own says: draws = True"):
        fl.compile(step, backend="aot_eager")(step.init(net), batch())
