from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules

from fnloop.schedules.decay import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    polynomial,
    step_decay,
)

STEPS = 300


def torch_values(make, lr, steps=STEPS):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


CASES = {
    "linear": (
        linear(0.05, 0.2, steps=200),
        lambda o: torch_schedules.LinearLR(o, 0.25, 1.0, total_iters=200),
        0.2,
    ),
    "linear down": (
        linear(0.2, 0.02, steps=130),
        lambda o: torch_schedules.LinearLR(o, 1.0, 0.1, total_iters=130),
        0.2,
    ),
    "cosine": (
        cosine(0.3, steps=STEPS, end=0.01),
        lambda o: torch_schedules.CosineAnnealingLR(o, STEPS, eta_min=0.01),
        0.3,
    ),
    "exponential": (exponential(0.3, 0.98), lambda o: torch_schedules.ExponentialLR(o, 0.98), 0.3),
    "step_decay": (
        step_decay(0.3, 0.5, steps=70),
        lambda o: torch_schedules.StepLR(o, 70, gamma=0.5),
        0.3,
    ),
    "polynomial": (
        polynomial(0.3, 0.0, steps=250, power=1.7),
        lambda o: torch_schedules.PolynomialLR(o, 250, power=1.7),
        0.3,
    ),
    "constant": (constant(0.3), lambda o: torch_schedules.ConstantLR(o, 1.0), 0.3),
}


@pytest.mark.lightning("H2")
@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_torch(name):
    schedule, make, lr = CASES[name]
    ours = [schedule(step) for step in range(STEPS)]
    assert ours == pytest.approx(torch_values(make, lr), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (linear(4.0, 2.0, steps=10, warmup=2), {0: 0.0, 1: 2.0, 2: 4.0, 6: 3.0, 10: 2.0, 99: 2.0}),
        (cosine(4.0, steps=10, warmup=2, end=2.0), {0: 0.0, 1: 2.0, 2: 4.0, 6: 3.0, 10: 2.0}),
        (
            cosine(1.0, steps=12, warmup=0),
            {0: 1.0, 4: 0.5 * (1 + math.cos(math.pi / 3)), 12: 0.0, 10**9: 0.0},
        ),
        (cosine(1.0, steps=4, warmup=4), {0: 0.0, 2: 0.5, 3: 0.75, 4: 1.0, 5: 0.0}),
        (polynomial(5.0, 1.0, steps=6, power=2.0, warmup=2), {1: 2.5, 2: 5.0, 4: 2.0, 6: 1.0}),
        (exponential(3.0, 0.25, steps=4), {0: 3.0, 2: 1.5, 8: 3.0 / 16}),
        (step_decay(3.0, 0.5, steps=4), {0: 3.0, 3: 3.0, 4: 1.5, 11: 0.75}),
        (inverse_sqrt(2.0, warmup=4), {0: 0.0, 1: 0.5, 4: 2.0, 16: 1.0, 64: 0.5}),
        (constant(3), {0: 3.0, 10**9: 3.0}),
    ],
)
def test_values_worked_out_by_hand(schedule, points):
    for step, value in points.items():
        assert schedule(step) == pytest.approx(value, abs=1e-15)
        assert type(schedule(step)) is float


def test_inverse_sqrt_is_the_rule_of_the_transformer():
    # Vaswani et al., 2017, eq. 3, d_model = 512, warmup_steps = 4000
    schedule = inverse_sqrt(512**-0.5 * 4000**-0.5, warmup=4000)
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        noam = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert schedule(step) == pytest.approx(noam, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cosine(1.0, steps=-1), ValueError, r"cosine\(steps=.*at least 1, got -1"),
        (lambda: cosine(1.0, steps=10, warmup=-2), ValueError, r"cosine\(warmup=.*at least 0"),
        (lambda: cosine(1.0, steps=10, warmup=11), ValueError, "warmup is 11, but steps is 10"),
        (lambda: cosine(1.0, steps=1e4), TypeError, "10_000 rather than 1e4"),
        (lambda: linear(1.0, 0.0, steps=0), ValueError, r"linear\(steps="),
        (lambda: polynomial(1.0, 0.0, steps=2, warmup=3), ValueError, "polynomial: warmup"),
        (lambda: exponential(1.0, 0.5, steps=0), ValueError, r"exponential\(steps="),
        (lambda: step_decay(1.0, 0.5, steps=0), ValueError, r"step_decay\(steps="),
        (lambda: inverse_sqrt(1.0, warmup=0), ValueError, r"inverse_sqrt\(warmup="),
        (lambda: cosine(1.0, steps=True), TypeError, "a whole number"),
    ],
)
def test_nonsense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
