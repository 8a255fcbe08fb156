"""Extragradient against its closed form in ``min max x * y``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.y = nn.Parameter(torch.tensor(4.0, dtype=torch.float64))


def game(lr, *ahead):
    return fl.pipe(
        fl.schemes.several(
            x=fl.grad(lambda model, batch: model.x * model.y, only="x"),
            y=fl.grad(lambda model, batch: -model.x * model.y, only="y"),
        ),
        *ahead,
        fl.update(fl.optim.sgd(lr)),
    )


@pytest.mark.parametrize("lr", [0.1, 0.5])
def test_players_of_a_bilinear_game_approach_by_the_closed_form(lr):
    """A step multiplies by ``1 - lr J + lr**2 J**2``, of modulus ``sqrt(1 - lr**2 + lr**4)``."""
    step = game(lr, fl.schemes.extragradient(lr))
    state = step.init(Pair())
    for _ in range(10):
        state, metrics = step(state, torch.ones(1))
    expected = 5 * (1 - lr**2 + lr**4) ** 5
    assert float(state.params.norm()) == pytest.approx(expected, rel=1e-9)
    assert {"x/loss", "y/loss"} <= set(metrics)


def test_gradients_alone_spiral_away():
    step = game(0.5)
    state = step.init(Pair())
    for _ in range(10):
        state, _ = step(state, torch.ones(1))
    assert float(state.params.norm()) == pytest.approx(5 * (1 + 0.25) ** 5, rel=1e-9)


def test_on_a_quadratic_it_is_the_polynomial_of_the_step():
    """``1 - lr c (1 - lr c)`` for each curvature."""
    curvature = torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64)

    def bowl(model, batch):
        return (curvature * model.weight.square()).sum() / 2

    ahead, lr = 0.3, fl.schedules.linear(0.2, 0.1, steps=2)
    step = fl.pipe(bowl, fl.grad, fl.schemes.extragradient(ahead), fl.update(fl.optim.sgd(lr)))
    state = step.init(nn.Linear(3, 1, bias=False, dtype=torch.float64))
    expected = state.params["weight"]
    for rate in (0.2, 0.15):
        state, _ = step(state, torch.ones(1))
        expected = expected * (1 - rate * curvature * (1 - ahead * curvature))
    torch.testing.assert_close(state.params["weight"], expected)
