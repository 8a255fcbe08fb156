"""The decay of a plain mean of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fnloop as fl
from fnloop.schedules.averages import uniform


def test_values_by_hand():
    schedule = uniform(start=3, every=2)  # the weights after 3, 5, 7, ... steps
    assert [schedule(step) for step in range(8)] == pytest.approx(
        [0.0, 0.0, 0.0, 1.0, 1 / 2, 1.0, 2 / 3, 1.0]
    )


@pytest.mark.parametrize("schedule", [uniform(), uniform(start=3, every=2), uniform(5, 7)], ids=str)
def test_a_tensor_gives_the_same_as_an_int(schedule):
    steps = torch.arange(60)
    expected = torch.tensor([schedule(int(step)) for step in steps], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([schedule(step) for step in steps]), expected)
    torch.testing.assert_close(torch.func.vmap(schedule)(steps), expected)


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


@pytest.mark.lightning("C11", "V5", "D2")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("start", "every"), [(1, 1), (4, 4), (6, 3)])
def test_the_average_is_that_of_torch_with_the_last_weights(start, every, compiled):
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    step = fl.pipe(
        loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(uniform(start=start, every=every))
    )
    fast = fl.compile(step, backend="aot_eager") if compiled else step
    torch.manual_seed(0)
    state, reference = fast.init(nn.Linear(3, 2)), None
    for i in range(1, 13):
        state, _ = fast(state, (x, y))
        live = fl.to_module(state)
        if i == start:
            reference = AveragedModel(live)
        if i >= start and (i - start) % every == 0:
            reference.update_parameters(live)  # the first call copies
        theirs = live if reference is None else reference.module
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(state["ema"][name], p.detach(), rtol=1e-5, atol=1e-6)
    before = reference.module.weight.detach().clone()
    assert not torch.equal(before, live.weight)


def test_the_rate_beside_it_anneals_as_torchs_swalr_does():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.2)
    theirs = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=10)
    schedule = fl.schedules.join(
        (fl.schedules.constant(0.2), fl.schedules.cosine(0.2, steps=10, end=0.05)), (6,)
    )
    assert [schedule(step) for step in range(6)] == [0.2] * 6
    for step in range(6, 24):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: uniform(start=0), ValueError, r"uniform\(start=...\).* at least 1, got 0"),
        (lambda: uniform(every=0), ValueError, r"uniform\(every=...\).* at least 1, got 0"),
        (lambda: uniform(every=1.5), TypeError, "every"),
    ],
)
def test_nonsense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


FORMS = {
    "vmapped": lambda step: fl.ensemble(step, 2),
    "compiled": lambda step: fl.compile(step, backend="aot_eager"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_decay_near_one_is_as_exact_scheduled_as_a_number(form):
    def average(decay, form=lambda step: step):
        optimizer = fl.optim.sgd(1.0)
        step = fl.pipe(
            lambda model, x: -model.weight.sum(), fl.grad, fl.update(optimizer), fl.ema(decay)
        )
        step, weight = form(step), nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(weight.weight)
        state = step.init(weight)
        for _ in range(10):
            state, _ = step(state, torch.ones(1, 1))
        return state["ema"]["weight"].flatten()[0]

    found = average(fl.schedules.constant(0.99999), FORMS[form])
    torch.testing.assert_close(found, average(0.99999), rtol=1e-12, atol=0)
