"""Schedulers as schedules, against torch's own schedulers stepped as Lightning steps them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim import lr_scheduler as kinds

from fnloop.lightning.configured import Scheduled
from fnloop.lightning.tables import Tabled, schedules_of
from fnloop.schedules.base import at

PER_EPOCH, EPOCHS = 4, 6
TOTAL = PER_EPOCH * EPOCHS
MADE = {
    "StepLR": lambda o: kinds.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: kinds.MultiStepLR(o, [1, 4], gamma=0.3),
    "ExponentialLR": lambda o: kinds.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: kinds.LambdaLR(o, [lambda n: 1 / (n + 1), lambda n: min(1, n / 3)]),
    "CosineAnnealingLR": lambda o: kinds.CosineAnnealingLR(o, T_max=5, eta_min=0.01),
    "WarmRestarts": lambda o: kinds.CosineAnnealingWarmRestarts(o, T_0=3),
    "LinearLR": lambda o: kinds.LinearLR(o, 0.1, total_iters=4),
    "PolynomialLR": lambda o: kinds.PolynomialLR(o, total_iters=5, power=2.0),
    "CyclicLR": lambda o: kinds.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: kinds.OneCycleLR(o, 0.3, total_steps=TOTAL),
    "Chained": lambda o: kinds.ChainedScheduler(
        [kinds.ConstantLR(o, 0.5, total_iters=2), kinds.ExponentialLR(o, 0.9)]
    ),
}


def optimizer():
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    return torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1, momentum=0.9)


def by_torch(name, interval, frequency):
    """The numbers of both groups at each optimizer step."""
    own = optimizer()
    scheduler, found = MADE[name](own), []
    for step in range(1, TOTAL + 1):
        found.append([(g["lr"], g["momentum"]) for g in own.param_groups])
        own.step()
        each = frequency * (PER_EPOCH if interval == "epoch" else 1)
        if step % each == 0 and step < TOTAL:
            scheduler.step()
    return found


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("frequency", [1, 2])
def test_its_numbers_are_those_of_the_scheduler(name, interval, frequency):
    given = Scheduled(MADE[name](optimizer()), interval, frequency)
    groups = schedules_of([given], PER_EPOCH, EPOCHS)
    for step, expected in enumerate(by_torch(name, interval, frequency)):
        for found, (lr, momentum) in zip(groups, expected, strict=True):
            assert at(found["lr"], step) == pytest.approx(lr, rel=1e-12, abs=1e-15)
            assert at(found.get("momentum", 0.9), step) == pytest.approx(momentum, rel=1e-12)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    ("batches", "accumulate", "frequency"),
    [(4, 1, 3), (4, 1, 5), (8, 2, 2), (8, 2, 3), (7, 2, 4), (7, 2, 7), (12, 3, 2)],
)
def test_a_frequency_counts_the_batches_of_each_epoch(name, batches, accumulate, frequency):
    own, expected = optimizer(), list[tuple[float, float]]()
    scheduler = MADE[name](own)
    for _ in range(EPOCHS):  # as Lightning's loop does
        for batch_idx in range(batches):
            if (batch_idx + 1) % accumulate and batch_idx + 1 < batches:
                continue
            expected.append((own.param_groups[0]["lr"], own.param_groups[0]["momentum"]))
            own.step()
            if (batch_idx + 1) % frequency == 0 and len(expected) < TOTAL:
                scheduler.step()
    other = optimizer()
    given = Scheduled(MADE[name](other), "step", frequency).counted(batches, accumulate)
    (found, _) = schedules_of([given], PER_EPOCH, EPOCHS)
    assert len(expected) == TOTAL
    same = other.param_groups[0]["momentum"]
    for step, (lr, momentum) in enumerate(expected):
        assert at(found["lr"], step) == pytest.approx(lr, rel=1e-12, abs=1e-15)
        assert at(found.get("momentum", same), step) == pytest.approx(momentum, rel=1e-12)


def test_a_frequency_that_fits_keeps_the_closed_form():
    given = Scheduled(MADE["StepLR"](optimizer()), "step", 4).counted(batches=8, accumulate=2)
    (found, _) = schedules_of([given], 4, None)
    assert repr(found["lr"]) == "step_decay(start=0.1, rate=0.5, steps=4)"


@pytest.mark.parametrize("name", ["MultiStepLR", "LinearLR", "PolynomialLR"])
def test_what_ends_by_itself_ends_where_its_frequency_does_not_fit(name):
    given = Scheduled(MADE[name](optimizer()), "step", 3).counted(PER_EPOCH, 1)
    (short, _) = schedules_of([given], PER_EPOCH, None)
    given = Scheduled(MADE[name](optimizer()), "step", 3).counted(PER_EPOCH, 1)
    (whole, _) = schedules_of([given], PER_EPOCH, EPOCHS)
    assert [at(short["lr"], i) for i in range(TOTAL)] == [at(whole["lr"], i) for i in range(TOTAL)]


def test_two_schedulers_of_one_optimizer_move_together():
    def made(own):
        return [
            Scheduled(kinds.LinearLR(own, 0.1, total_iters=3), "step"),
            Scheduled(kinds.StepLR(own, 1, gamma=0.5), "epoch"),
        ]

    own = optimizer()
    warmup, decay = (each.scheduler for each in made(own))
    groups = schedules_of(made(optimizer()), PER_EPOCH, EPOCHS)
    for step in range(TOTAL):
        assert at(groups[0]["lr"], step) == pytest.approx(own.param_groups[0]["lr"], rel=1e-12)
        own.step()
        warmup.step()
        if (step + 1) % PER_EPOCH == 0:
            decay.step()


@pytest.mark.parametrize("name", ["MultiStepLR", "LinearLR", "PolynomialLR", "OneCycleLR"])
def test_what_ends_by_itself_needs_no_number_of_epochs(name):
    given = Scheduled(MADE[name](optimizer()), "step")
    (found, _) = schedules_of([given], None, None)
    for step, expected in enumerate(by_torch(name, "step", 1)):
        assert at(found["lr"], step) == pytest.approx(expected[0][0], rel=1e-12, abs=1e-15)


def test_what_needs_a_length_asks_for_it():
    with pytest.raises(ValueError, match=r"StepLR counts epochs, .*step\(module, data\)"):
        schedules_of([Scheduled(MADE["StepLR"](optimizer()))], None, None)
    with pytest.raises(ValueError, match=r"LambdaLR is run in advance, .* epochs=10"):
        schedules_of([Scheduled(MADE["LambdaLR"](optimizer()))], PER_EPOCH, None)


def test_a_table_is_the_same_for_tensors_and_under_vmap():
    table = Tabled(0.1, torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64), steps=2)
    steps = torch.arange(8)
    expected = [table(int(step)) for step in steps]
    assert [float(table(step)) for step in steps] == pytest.approx(expected)
    assert torch.func.vmap(table)(steps).tolist() == pytest.approx(expected)
    base = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Tabled(base, table.factors, 2)(torch.tensor(3)), base)
    assert float(slope) == 0.5


def test_torch_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules_of([Scheduled(MADE["WarmRestarts"](optimizer()))], PER_EPOCH, EPOCHS)
