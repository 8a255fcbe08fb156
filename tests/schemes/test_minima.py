"""``implicit`` against closed forms, long unrolls and finite differences."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

DOUBLE = torch.float64
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
Y = (X @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=DOUBLE))[:, None] + X[:, :1].sin()
HELD = X.flip(0)[:10] * 0.7 + 0.1, Y[:10] + 0.3


@fl.tree
class Ridge:
    """Squared errors with a weight for each example, and an L2 penalty."""

    decay: Any
    weights: Any

    def __call__(self, model, batch):
        x, y = batch
        errors = (self.weights * (model(x) - y).square()[:, 0]).mean()
        return errors + self.decay * model.weight.square().sum()


def closed_form(decay, weights):
    """The minimum of Ridge, by normal equations."""
    gram = X.T @ (weights[:, None] * X) / len(X) + decay * torch.eye(4, dtype=DOUBLE)
    return torch.linalg.solve(gram, X.T @ (weights[:, None] * Y) / len(X)).T


def held_out(weight):
    return (HELD[0] @ weight.T - HELD[1]).square().mean()


STATE = fl.grad(Ridge(0.1, 1.0)).init(nn.Linear(4, 1, bias=False, dtype=DOUBLE))


def state_at(weight):
    return STATE.replace(params={"weight": weight.detach()})


WEIGHTS = torch.linspace(0.5, 1.5, 30, dtype=DOUBLE)
DECAY = torch.tensor(0.1, dtype=DOUBLE)


def of_ridge(decay, weights, part=(), **options):
    stage = fl.pipe(Ridge(decay, weights), fl.grad, *part)
    found = fl.schemes.implicit(
        stage, state_at(closed_form(DECAY, WEIGHTS)), (X, Y), tolerance=1e-12, **options
    )
    return found.apply(lambda model: held_out(model.weight))


OPTIONS = {
    "cg": {},
    "cg, in a few steps": {"steps": 4},
    "neumann": {"solver": "neumann", "steps": 150, "rate": 0.4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=[*OPTIONS])
def test_ridge_regression_has_the_derivative_of_its_closed_form(options):
    exact = functools.partial(torch.func.grad, argnums=(0, 1))(
        lambda decay, weights: held_out(closed_form(decay, weights))
    )(DECAY, WEIGHTS)
    ours = functools.partial(of_ridge, **options)
    assert float(ours(DECAY, WEIGHTS)) == float(held_out(closed_form(DECAY, WEIGHTS)))
    by_func = torch.func.grad(ours, argnums=(0, 1))(DECAY, WEIGHTS)
    asked = [t.clone().requires_grad_() for t in (DECAY, WEIGHTS)]
    by_autograd = torch.autograd.grad(ours(*asked), asked)
    ways = torch.ones((), dtype=DOUBLE), WEIGHTS.sin()
    by_jvp = torch.func.jvp(ours, (DECAY, WEIGHTS), ways)[1]
    torch.testing.assert_close(by_func, exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(by_autograd, exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(by_jvp, exact[0] + exact[1] @ ways[1], rtol=1e-8, atol=1e-10)


def test_many_at_once_by_vmap():
    def slope(decay):
        def at(decay):
            weight = closed_form(decay, WEIGHTS)
            found = fl.schemes.implicit(
                fl.grad(Ridge(decay, WEIGHTS)), state_at(weight), (X, Y), tolerance=1e-12
            )
            return found.apply(lambda model: held_out(model.weight))

        return torch.func.grad(at)(decay)

    decays = torch.tensor([0.03, 0.1, 1.0], dtype=DOUBLE)
    exact = torch.func.grad(lambda decay: held_out(closed_form(decay, WEIGHTS)))
    torch.testing.assert_close(torch.func.vmap(slope)(decays), torch.stack([*map(exact, decays)]))


def test_micro_batches_are_the_whole():
    weights = torch.ones(30, dtype=DOUBLE)

    def at(decay, part):
        @fl.tree
        class penalized:
            decay: Any

            def __call__(self, model, batch):
                return (model(batch[0]) - batch[1]).square().mean() + (
                    self.decay * model.weight.square().sum()
                )

        stage = fl.pipe(penalized(decay), fl.grad, *part)
        state = state_at(closed_form(DECAY, weights))
        return fl.schemes.implicit(stage, state, (X, Y)).apply(lambda m: held_out(m.weight))

    slopes = [torch.func.grad(at)(DECAY, part) for part in ([], [fl.accumulate(4)])]
    torch.testing.assert_close(*slopes)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.first(x).tanh())


@fl.tree
class Smooth:
    """A network with a penalty, and noise on its inputs, the same in each call."""

    decay: Any
    noise: Any

    def __call__(self, model, batch):
        x, y = batch
        penalty = sum([p.square().sum() for n, p in model.named_parameters() if "unused" not in n])
        x = x + self.noise * torch.cos(7 * x)
        return F.smooth_l1_loss(model(x), y) + self.decay * penalty


def test_a_network_has_the_derivative_of_a_long_unroll():
    def trained(decay, noise, state, steps):
        step = fl.pipe(Smooth(decay, noise), fl.grad, fl.update(fl.optim.sgd(0.1)))
        return fl.unroll(step, step.init(state), [(X, Y)] * steps, recompute=20)

    values = torch.tensor(0.2, dtype=DOUBLE), torch.tensor(0.3, dtype=DOUBLE)
    lbfgs = fl.optim.lbfgs(max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)
    one = fl.pipe(Smooth(*values), fl.grad, fl.update(lbfgs))
    state = one.init(lambda: Net().double(), seed=0)
    for _ in range(5):
        state, _ = one(state, (X, Y))
    assert fl.grad(Smooth(*values))(state, (X, Y))[1].mean.norm() < 1e-6
    outer = lambda model: (model(HELD[0]) - HELD[1]).square().mean()  # noqa: E731

    def ours(decay, noise, **options):
        stage = fl.grad(Smooth(decay, noise))
        return fl.schemes.implicit(stage, state, (X, Y), **options).apply(outer)

    asked = [v.clone().requires_grad_() for v in values]
    steps = 400
    unrolled = torch.autograd.grad(trained(*asked, state, steps).apply(outer), asked)
    found = torch.autograd.grad(ours(*asked, tolerance=1e-10), asked)
    torch.testing.assert_close(found, unrolled, rtol=1e-5, atol=0)
    assert min(map(abs, found)) > 1e-2
    few = torch.autograd.grad(trained(*asked, state, 6).apply(outer), asked)
    series = ours(*asked, solver="neumann", steps=5, rate=0.1)
    torch.testing.assert_close(torch.autograd.grad(series, asked), few, rtol=1e-5, atol=0)


def test_it_changes_nothing_and_drops_what_parameters_carry():
    state = state_at(closed_form(DECAY, WEIGHTS))
    before = fl.tree_map(torch.clone, state)
    asked = state.params["weight"].clone().requires_grad_()
    found = fl.schemes.implicit(
        fl.grad(Ridge(DECAY, WEIGHTS)), state.replace(params={"weight": asked}), (X, Y)
    )
    assert fl.tree_equal(before, state) and not found.params["weight"].requires_grad
    assert fl.tree_equal(found, state)


def test_a_derivative_of_a_derivative_is_refused():
    slope = torch.func.grad(of_ridge)
    with pytest.raises(RuntimeError, match="implicit has derivatives of first order only"):
        torch.func.grad(slope)(DECAY, WEIGHTS)
    decay = DECAY.clone().requires_grad_()
    (first,) = torch.autograd.grad(of_ridge(decay, WEIGHTS), decay, create_graph=True)
    with pytest.raises(RuntimeError, match="implicit has derivatives of first order only"):
        torch.autograd.grad(first, decay)


def test_a_state_that_is_no_minimum_is_told():
    def at(decay, **options):
        stage = fl.grad(Ridge(decay, WEIGHTS))
        found = fl.schemes.implicit(
            stage, state_at(torch.ones(1, 4, dtype=DOUBLE)), (X, Y), **options
        )
        return found.apply(lambda model: held_out(model.weight))

    decay = torch.tensor(-5.0, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(ValueError, match=r"does not curve upwards.*damping="):
        torch.autograd.grad(at(decay), decay)
    assert torch.func.grad(at)(decay.detach()).isnan()
    (damped,) = torch.autograd.grad(at(decay, damping=20.0), decay)
    assert damped.isfinite()


def test_errors():
    stage, state = fl.grad(Ridge(DECAY, WEIGHTS)), state_at(closed_form(DECAY, WEIGHTS))
    for options, message in {
        (("solver", "newton"),): r'solver=.* takes "cg" or "neumann", got \'newton\'',
        (("solver", "neumann"),): r"takes a rate below 2 over the largest eigenvalue",
        (("steps", 0),): r"implicit\(steps=\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            fl.schemes.implicit(stage, state, (X, Y), **dict(options))
    sharded = fl.shard(fl.pipe(stage, fl.update(fl.optim.sgd(0.1))), fl.mesh())
    with pytest.raises(ValueError, match="implicit was given a stage that is sharded"):
        fl.schemes.implicit(sharded.inner, state, (X, Y))
