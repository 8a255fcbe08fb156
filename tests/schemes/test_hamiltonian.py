"""SGHMC against the distribution that it has to draw from, and against SGD with momentum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import nn

import fnloop as fl

CURVATURE = torch.tensor([0.5, 1.0, 4.0])[:, None]


def bowl(model, batch):
    return (CURVATURE * (model.weight - 1).square()).sum() / 2


def step_of(lr=0.1, temperature=0.3, loss=bowl, **options):
    return fl.pipe(
        loss, fl.grad, fl.update(fl.optim.sgd(lr)), fl.schemes.sghmc(temperature, **options)
    )


def run(step, state, steps):
    for _ in range(steps):
        state, _ = step(state, torch.ones(1))
    return state


def test_its_samples_have_the_variance_of_the_closed_form():
    """On a quadratic loss, position and velocity are a linear process: Lyapunov's equation."""
    n, lr, temperature, friction = 40_000, 0.1, 0.3, 0.25
    step = step_of(lr, temperature, friction=friction)
    state = run(step, step.init(nn.Linear(n, 3, bias=False)), 120)
    drawn = torch.stack([state.params["weight"], state["sghmc"]["weight"]], 1).numpy()
    for c, samples in zip(CURVATURE[:, 0].tolist(), drawn, strict=True):
        # v' = (1 - friction) v - lr c w + noise; w' = w + v'
        step_matrix = np.array([[1 - lr * c, 1 - friction], [-lr * c, 1 - friction]])
        noise = 2 * friction * lr * temperature * np.ones((2, 2))
        expected = solve_discrete_lyapunov(step_matrix, noise)
        np.testing.assert_allclose(np.cov(samples), expected, rtol=0.04, atol=4e-4)
        # What all have in the limit of a small rate, whatever their curvature.
        assert expected[0, 0] == pytest.approx(temperature / c, rel=0.2)


def test_without_temperature_it_is_sgd_with_momentum_of_torch():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(6, 4)

    def loss(model, batch):
        return model(batch).square().mean()

    step = step_of(0.1, 0.0, loss, friction=0.2)
    state = step.init(model)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    for _ in range(20):
        state, _ = step(state, x)
        theirs.zero_grad()
        loss(model, x).backward()
        theirs.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach())
