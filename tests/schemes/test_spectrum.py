"""Lanczos against the eigenvalues of the whole Hessian, by ``torch.linalg.eigvalsh``."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

import fnloop as fl
from tests.schemes.hessians import whole_hessian

lanczos = fl.schemes.lanczos


def net():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


@functools.cache  # before any vmap
def batch(n=40):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def eigenvalues(state):
    return torch.linalg.eigvalsh(whole_hessian(net(), state, batch()))


DRAWS = 12


@functools.cache
def measured():
    stage = fl.grad(loss)
    state = stage.init(net, seed=0)
    return lanczos(stage, state, batch(), steps=14, draws=DRAWS), eigenvalues(state)


@pytest.mark.parametrize("part", [[], [fl.accumulate(2)]], ids=["whole", "in parts"])
def test_as_many_steps_as_parameters_give_all_eigenvalues(part):
    stage = fl.pipe(loss, fl.grad, *part)
    state = stage.init(net, seed=0)
    found, expected = lanczos(stage, state, batch(), steps=100), eigenvalues(state)
    assert found.values.shape == (1, 38)
    torch.testing.assert_close(found.values[0], expected, rtol=1e-8, atol=1e-10)


def test_a_few_steps_give_the_largest_and_the_moments():
    found, expected = measured()
    torch.testing.assert_close(found.top(3), expected.flip(0)[:3], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(DRAWS).double())
    # Of random starts: the mean and the mean square of the eigenvalues.
    for power in (1, 2):
        moments = (found.weights * found.values**power).sum(1)
        deviation = float(moments.std()) / math.sqrt(DRAWS)
        assert float(moments.mean()) == pytest.approx(
            float((expected**power).mean()), abs=4 * deviation
        )


def test_the_density_is_that_of_the_eigenvalues():
    found, expected = measured()
    at, width = torch.linspace(-0.5, 1.5, 200, dtype=torch.float64), 0.05
    normal = torch.distributions.Normal(expected, width)
    exact = normal.log_prob(at[:, None]).exp().mean(1)
    distance = (found.density(at, width) - exact).abs().sum() * (at[1] - at[0])
    assert distance < 0.15  # of two densities apart it is 2


def test_equal_eigenvalues_are_found_as_often_as_they_are_there():
    """A start meets one vector of each eigenspace; then the iteration begins anew in the rest."""
    curvature = torch.tensor([[3.0, 3.0, 3.0, -1.0, -1.0, 0.0]])
    stage = fl.grad(lambda model, c: (c * model.weight.square()).sum() / 2)
    for dtype in (torch.float32, torch.float64):
        state = stage.init(nn.Linear(6, 1, bias=False).to(dtype))
        found = lanczos(stage, state, curvature.to(dtype))
        expected = curvature[0].double().sort().values
        torch.testing.assert_close(found.values[0], expected, rtol=0, atol=1e-5)
        # The quadrature is of the three that the start sees: the rest has no weight.
        assert int((found.weights[0] > 1e-9).sum()) == 3


def test_it_changes_nothing_and_is_the_same_when_it_is_asked_again():
    stage = fl.grad(loss)
    state = stage.init(net, seed=0)
    before = fl.tree_map(torch.clone, state)
    first = lanczos(stage, state, batch(), steps=4)
    assert fl.tree_equal(first, lanczos(stage, state, batch(), steps=4))
    assert fl.tree_equal(before, state)


def test_a_population_is_measured_at_once():
    stage, x = fl.grad(loss), batch()
    states = [stage.init(net, seed=seed) for seed in range(3)]
    stacked = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    together = torch.func.vmap(
        lambda state: lanczos(stage, state, x, steps=6), randomness="different"
    )(stacked)
    for i, state in enumerate(states):
        alone = lanczos(stage, state, x, steps=6)
        torch.testing.assert_close(together.values[i], alone.values)


def test_errors():
    stage = fl.grad(loss)
    state = stage.init(net)
    with pytest.raises(ValueError, match=r"lanczos\(steps=\)"):
        lanczos(stage, state, batch(), steps=0)
    with pytest.raises(ValueError, match=r"lanczos\(draws=\)"):
        lanczos(stage, state, batch(), draws=0)
