"""The laws of ``new_step``, and the mean that it keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.templates.step_stage import new_step


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def test_laws() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), new_step())
    print(fl.testing.check_laws(step, step.init(network, seed=0), batch()))  # seen by pytest -s


def test_it_is_the_mean_of_the_parameters_after_each_step() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), new_step(start=1))
    state, seen = step.init(network, seed=0), list[Tensor]()
    for _ in range(4):
        state, _ = step(state, batch())
        seen.append(state.params["0.weight"])
    expected = torch.stack(seen[1:]).mean(0)
    torch.testing.assert_close(state["new_step"]["mean"]["0.weight"], expected)
