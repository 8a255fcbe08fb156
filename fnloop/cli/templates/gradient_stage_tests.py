"""The laws of ``new_grad``, and what it does to a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.templates.gradient_stage import new_grad


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def test_laws() -> None:
    step = fl.pipe(loss, fl.grad, new_grad(), fl.update(fl.optim.adamw(1e-2)))
    print(fl.testing.check_laws(step, step.init(network, seed=0), batch()))  # seen by pytest -s


def test_a_gradient_far_above_the_mean_is_cut() -> None:
    gradients = fl.pipe(loss, fl.grad, new_grad(factor=1.5, decay=0.5))
    state = gradients.init(network, seed=0)
    state, first = gradients(state, batch())
    torch.testing.assert_close(first.mean.norm(), fl.grad(loss)(state, batch())[1].mean.norm())
    x, y = batch()
    _, second = gradients(state, (x, 100 * y))
    whole = fl.grad(loss)(state, (x, 100 * y))[1].mean.norm()
    mean = (first.mean.norm() + 2 * whole) / 3
    torch.testing.assert_close(second.mean.norm(), torch.minimum(1.5 * mean, whole))
