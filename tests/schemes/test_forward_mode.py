"""The forward gradient against the gradient of a backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl

forward_gradient = fl.schemes.forward_gradient


def net():
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Dropout(0.3), nn.Linear(2, 1)).double()


def loss(model, batch):
    return model(batch).square().mean()


def batch(n=6):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("part", [[], [fl.accumulate(2)]], ids=["whole", "in parts"])
def test_it_is_the_slope_along_a_direction_times_the_direction(part):
    exact = fl.pipe(loss, fl.grad, *part)
    state = exact.init(net, seed=0)
    _, grads = exact(state, batch())
    _, estimate = forward_gradient(exact)(state, batch())
    with fl.randomness(state, "forward_gradient"):
        way = {name: torch.randn_like(p) for name, p in state.params.items()}
    slope = sum((grads.mean[name] * v).sum() for name, v in way.items())
    for name, v in way.items():
        torch.testing.assert_close(estimate.mean[name], slope * v)
    assert fl.tree_equal(estimate.metrics, grads.metrics)
    assert torch.equal(estimate.weight, grads.weight)


def test_its_mean_is_the_gradient():
    def bowl(model, batch):
        return (model.weight.square() * torch.tensor([1.0, 2.0, 3.0])).sum() / 2

    stage = fl.pipe(bowl, fl.grad)
    state = stage.init(lambda: nn.Linear(3, 1, bias=False), seed=0)
    g = stage(state, torch.ones(1))[1].mean["weight"][0]
    n = 4_000

    def draw(calls):
        estimate = forward_gradient(stage)(state.replace(calls=calls), torch.ones(1))[1]
        return estimate.mean["weight"][0]

    drawn = torch.func.vmap(draw, randomness="different")(torch.arange(n))
    covariance = g.square().sum() * torch.eye(3) + torch.outer(g, g)
    deviation = (covariance.diagonal() / n).sqrt()
    assert ((drawn.mean(0) - g).abs() < 4 * deviation).all()
    torch.testing.assert_close(
        drawn.T.cov(), covariance, rtol=0.2, atol=0.06 * float(covariance.trace())
    )


def test_statistics_move_as_they_do_with_a_backward_pass():
    exact = fl.grad(loss)
    state = exact.init(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double(), seed=0)
    assert fl.tree_equal(
        exact(state, batch())[0].buffers, forward_gradient(exact)(state, batch())[0].buffers
    )


def test_a_sharded_step_is_refused():
    step = fl.pipe(loss, fl.grad, forward_gradient, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(ValueError, match="forward_gradient was given a stage that is sharded"):
        fl.shard(step, fl.mesh())
