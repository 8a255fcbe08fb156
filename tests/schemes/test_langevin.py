"""SGLD against the distribution that it has to draw from, and what it has in common with SGHMC."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl

CURVATURE = torch.tensor([0.5, 1.0, 4.0])[:, None]


def bowl(model, batch):
    return (CURVATURE * (model.weight - 1).square()).sum() / 2


def step_of(lr=0.2, temperature=0.3, scheme=fl.schemes.sgld, **options):
    return fl.pipe(bowl, fl.grad, fl.update(fl.optim.sgd(lr)), scheme(temperature, **options))


both = pytest.mark.parametrize("scheme", [fl.schemes.sgld, fl.schemes.sghmc])


def test_its_samples_have_the_mean_and_the_variance_of_the_closed_form():
    """Of an AR(1) process: ``2 lr T / (1 - (1 - lr c)**2) = T / (c * (1 - lr c / 2))``."""
    n, lr, temperature = 40_000, 0.2, 0.3
    step = step_of(lr, temperature)
    state = step.init(nn.Linear(n, 3, bias=False))
    for _ in range(60):  # the slowest coordinate forgets its start by 0.9**60
        state, _ = step(state, torch.ones(1))
    samples = state.params["weight"]
    expected = temperature / (CURVATURE * (1 - lr * CURVATURE / 2))[:, 0]
    torch.testing.assert_close(samples.var(1), expected, rtol=0.03, atol=0)  # 4 deviations
    torch.testing.assert_close(samples.mean(1), torch.ones(3), rtol=0, atol=0.02)


@both
def test_noise_is_of_the_rate_in_force(scheme):
    """Of two steps that differ in their temperature alone, the difference is the noise."""

    def noise(lr, factor=1.0):
        found = []
        for temperature in (0.0, 0.5):
            step = step_of(lr, temperature, scheme)
            state = step.init(lambda: nn.Linear(50, 3, bias=False))
            found.append(step(fl.scale(state, "sgd.lr", factor), torch.ones(1))[0].params["weight"])
        return found[1] - found[0]

    rate = fl.schedules.linear(0.1, 0.0, steps=10)
    torch.testing.assert_close(noise(0.1), noise(rate), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(noise(0.1, 0.25), noise(0.1) / 2, rtol=1e-3, atol=1e-5)
    friction = 0.1 if scheme is fl.schemes.sghmc else 1.0
    assert float(noise(0.1).std()) == pytest.approx((2 * friction * 0.1 * 0.5) ** 0.5, rel=0.2)


@both
def test_what_the_optimizer_freezes_gets_no_noise(scheme):
    labels = {"0": "body", "*": "head"}
    by_label = fl.optim.by_label({"head": fl.optim.sgd(0.1), "body": fl.optim.freeze()}, labels)
    step = fl.pipe(
        lambda model, x: model(x).square().mean(),
        fl.grad,
        fl.update(by_label),
        scheme(0.3, lr="head.sgd.lr"),
        fl.ema(0.5),
    )
    state = step.init(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    after, _ = step(state, torch.ones(2, 3))
    moved = {name for name in after.params if not after.params[name].equal(state.params[name])}
    assert moved == {"1.weight", "1.bias"} == set(after["ema"])


def test_each_step_draws_other_noise_and_parameters_other_than_those_of_others():
    step = step_of(lr=0.0)  # 2 lr T is zero: nothing moves
    state = step.init(lambda: nn.Linear(50, 3, bias=False))
    assert torch.equal(step(state, torch.ones(1))[0].params["weight"], state.params["weight"])
    step = step_of(lr=1e-3)
    after, _ = step(state, torch.ones(1))
    again, _ = step(after, torch.ones(1))
    first = after.params["weight"] - state.params["weight"]
    second = again.params["weight"] - after.params["weight"]
    correlation = torch.corrcoef(torch.cat([first, second]))
    assert (correlation - torch.eye(6)).abs().max() < 0.6


@both
def test_an_optimizer_of_another_name_is_an_error_that_says_what_to_write(scheme):
    step = fl.pipe(bowl, fl.grad, fl.update(fl.optim.rmsprop(0.1)), scheme(0.1))
    found = rf'{scheme.__name__} takes .*"sgd.lr", which the step does not report.*rmsprop.lr'
    with pytest.raises(ValueError, match=found):
        step(step.init(nn.Linear(50, 3, bias=False)), torch.ones(1))
    step = fl.pipe(bowl, fl.grad, fl.update(fl.optim.rmsprop(0.1)), scheme(0.1, lr="rmsprop.lr"))
    step(step.init(nn.Linear(50, 3, bias=False)), torch.ones(1))
