"""The laws of a step with ``new_optimizer``, and its steps beside torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.templates.own_optimizer import new_optimizer


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def test_laws() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(new_optimizer()))
    print(fl.testing.check_laws(step, step.init(network, seed=0), batch()))  # seen by pytest -s


def test_it_takes_the_steps_of_torch() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(new_optimizer(0.1, momentum=0.5)))
    state = step.init(network, seed=0)
    model = fl.to_module(state)
    # torch's momentum adds up gradients instead of taking their mean.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    for _ in range(4):
        state, _ = step(state, batch())
        optimizer.zero_grad()
        loss(model, batch()).backward()
        optimizer.step()
    torch.testing.assert_close(dict(state.params), dict(model.named_parameters()))
