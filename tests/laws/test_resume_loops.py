"""Law 8 for what begins, limits and ends a run: cut after any step, it goes on as if never cut."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl

STEPS = 11


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(0.05)), fl.ema(0.9))


def tensors(examples, seed):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 3, generator=make), torch.randn(examples, 1, generator=make)


def state(seed=1):
    return STEP.init(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1)
        ),
        seed=seed,
    )


def batches():
    return fl.Batches(tensors(40, 0), 4)


def loader():
    return DataLoader(TensorDataset(*tensors(40, 0)), 4, shuffle=True)


VALIDATION = fl.Batches(tensors(12, 5), 5)

LIMITED = {
    "a number of batches": lambda: fl.data.limit(batches(), 3),
    "a fraction": lambda: fl.data.limit(batches(), 0.45),
    "the same batches": lambda: fl.data.limit(batches(), 3, same=True),
    "a loader": lambda: fl.data.limit(loader(), 4),
    "the same of a loader": lambda: fl.data.limit(loader(), 4, same=True),
    "ahead": lambda: fl.data.prefetch(fl.data.limit(batches(), 3)),
    "one of one": lambda: fl.data.limit(batches(), 1),
    "in data": lambda: fl.data.limit(fl.Data(setup=lambda: fl.Data(loader())), 3),
}


def stops_late():
    """Early stopping asks at each validation; the least number of steps or epochs holds it back."""
    return [
        fl.every(2, fl.validate(loss, VALIDATION)),
        fl.early_stopping("val/loss", patience=1, min_delta=1e9),
    ]


def quarters():
    return [
        fl.every(0.25, fl.validate(loss, VALIDATION), unit="epoch"),
        fl.every(0.7, fl.validate(loss, VALIDATION, name="test"), unit="epoch", first=True),
        fl.early_stopping("val/loss", patience=3),
    ]


RUNS = {
    **{name: (make, list, {"steps": STEPS}) for name, make in LIMITED.items()},
    "least steps": (batches, stops_late, {"steps": 40, "min_steps": 7}),
    "least epochs": (
        lambda: fl.data.limit(batches(), 3),
        stops_late,
        {"epochs": 9, "min_epochs": 2},
    ),
    "least of both": (batches, stops_late, {"steps": 40, "min_steps": 3, "min_epochs": 1}),
    "fractions": (batches, quarters, {"epochs": 2}),
    "fractions of a limit": (lambda: fl.data.limit(batches(), 7), quarters, {"epochs": 3}),
}


@pytest.mark.lightning("T10", "T12", "T14")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_cut_after_any_step_ends_in_the_same_bits(tmp_path, name):
    data, callbacks, limits = RUNS[name]
    saving = fl.checkpoint(tmp_path, keep=None, every=1, unit="step")
    whole, history = fl.fit(STEP, state(), data(), callbacks=[*callbacks(), saving], **limits)
    count = int(whole.cursor[2])
    assert count >= 6
    for k in range(1, count):
        path = tmp_path / f"step-{k:08d}"
        again, told = fl.fit(
            STEP, state(seed=2), data(), callbacks=callbacks(), resume=path, **limits
        )
        assert fl.tree_equal(again, whole), k
        assert told.rows == history.rows, k
        assert (told.status, told.reason) == (history.status, history.reason), k


@pytest.mark.lightning("K2")
def test_what_was_stopped_late_stays_stopped(tmp_path):
    saving = fl.checkpoint(tmp_path, keep=None, every=1, unit="step")
    limits = {"steps": 40, "min_steps": 7}
    whole, history = fl.fit(STEP, state(), batches(), callbacks=[*stops_late(), saving], **limits)
    assert (int(whole.cursor[2]), history.status) == (8, "stopped")
    again, told = fl.fit(
        STEP, state(), batches(), callbacks=stops_late(), resume=tmp_path, **limits
    )
    assert again.params == whole.params and told.status == "stopped"
    assert again.cursor.tolist() == whole.cursor.tolist()
    longer = {**limits, "min_steps": 9}
    again, _ = fl.fit(STEP, state(), batches(), callbacks=stops_late(), resume=tmp_path, **longer)
    assert int(again.cursor[2]) == 10


@pytest.mark.parametrize("name", ["least steps", "fractions"])
def test_with_several_steps_in_a_call(tmp_path, name):
    data, callbacks, limits = RUNS[name]
    plain, _ = fl.fit(
        fl.compile(STEP, backend="aot_eager"), state(), data(), callbacks=callbacks(), **limits
    )
    fast = fl.compile(STEP, steps=5, backend="aot_eager")
    saving = fl.checkpoint(tmp_path, keep=None, every=3, unit="step")
    whole, history = fl.fit(fast, state(), data(), callbacks=[*callbacks(), saving], **limits)
    assert fl.tree_equal(whole, plain)
    for k in range(3, int(whole.cursor[2]), 3):
        path = tmp_path / f"step-{k:08d}"
        again, told = fl.fit(
            fast, state(seed=2), data(), callbacks=callbacks(), resume=path, **limits
        )
        assert fl.tree_equal(again, whole) and told.rows == history.rows, k


@pytest.mark.lightning("T13", "C15")
def test_a_budget_is_spent_over_restarts(tmp_path):
    def slow(state, metrics):
        time.sleep(0.02)
        return state, metrics

    def part(budget, steps=150):
        callbacks = [slow, fl.checkpoint(tmp_path / "a", every=1, unit="step")]
        return fl.fit(
            STEP,
            state(),
            batches(),
            steps=steps,
            budget=budget,
            callbacks=callbacks,
            resume=tmp_path / "a",
        )

    first, history = part(1.0)
    assert (history.status, history.reason) == ("stopped", "the time budget of 1 seconds")
    done = int(first.cursor[2])
    assert 0 < done <= 50 and 0.7 < history.seconds < 1.5
    same, history = part(0.4)
    assert same.params == first.params and history.reason == "the time budget of 0.4 seconds"
    second, history = part(2.0)
    assert history.status == "stopped" and 1.5 < history.seconds < 2.5
    assert done < int(second.cursor[2]) <= 100
    last, history = part(None)
    whole, _ = fl.fit(STEP, state(), batches(), steps=150)
    assert fl.tree_equal(last, whole) and history.seconds > 3.0


def turns(**options):
    """Two parts with clocks, memory and random streams of their own; one rests now and then."""
    falling = fl.schedules.linear(0.05, 0.0, steps=20)
    first = fl.pipe(
        loss,
        fl.grad(only="0"),
        fl.accumulate(2),
        fl.amp("fp16", init_scale=8.0, interval=2),
        fl.update(fl.optim.adam(falling)),
    )
    second = fl.pipe(
        loss, fl.grad(only="2"), fl.update(fl.optim.sgd(0.02, momentum=0.9)), fl.ema(0.9)
    )
    return fl.sequence(first=first, second=second, **options)


SEQUENCES = {
    "all in turn": lambda: turns(),
    "every third": lambda: turns(every={"second": 3}),
    "one in another": lambda: fl.sequence(
        pair=turns(every={"second": 2}),
        all=fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.01))),
        every={"pair": 2},
    ),
}


def rare(state, metrics):
    return state, {**metrics, "rare": fl.Sum(1.0)}


@pytest.mark.lightning("H10", "K1")
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_cut_after_any_step_ends_in_the_same_bits(tmp_path, name):
    step = SEQUENCES[name]()
    x, y = tensors(40, 0)
    x[17] = torch.nan  # a turn in each epoch is skipped

    def run(seed, *saving, **options):
        callbacks = [
            fl.every(3, fl.validate(loss, VALIDATION)),
            fl.reduce_on_plateau("val/loss", patience=0, threshold=0.5),
            fl.early_stopping("val/loss", patience=2, min_delta=1e9),
            fl.every(2, rare, name="rare"),
        ]
        data = fl.data.limit(fl.Batches((x, y), 6), 6)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1)
        )
        callbacks += saving
        state = step.init(model, seed=seed)
        return fl.fit(step, state, data, epochs=3, min_steps=14, callbacks=callbacks, **options)

    torch.manual_seed(0)
    saving = fl.checkpoint(tmp_path, keep=None, every=1, unit="step")
    whole, history = run(1, saving)
    count = int(whole.cursor[2])
    assert count == 15 and history.status == "stopped" and sum(history["skipped"]) > 0
    for k in range(1, count):
        again, told = run(2, resume=tmp_path / f"step-{k:08d}")
        assert fl.tree_equal(again, whole), k
        # Some losses are nan.
        told_rows, rows = ([repr(sorted(row.items())) for row in h.rows] for h in (told, history))
        assert told_rows == rows, k
        assert told.reason == history.reason, k


@pytest.mark.lightning("T13", "C15", "V10")
def test_a_budget_in_many_parts_ends_in_the_same_bits(tmp_path):
    """Wherever the budget of each part cuts the run; the time before counts."""

    def slow(state, metrics):
        time.sleep(0.005)
        return state, metrics

    budget, ends = 0.02, []
    while True:
        callbacks = [slow, fl.checkpoint(tmp_path, every=1, unit="step")]
        state_, history = fl.fit(
            STEP,
            state(),
            batches(),
            steps=20,
            budget=budget,
            callbacks=callbacks,
            resume=tmp_path,
        )
        ends.append(int(state_.cursor[2]))
        if history.status == "completed":
            break
        budget *= 1.5
    whole, _ = fl.fit(STEP, state(), batches(), steps=20)
    assert fl.tree_equal(state_, whole)
    assert ends == sorted(ends) and len(ends) > 2 and history.seconds > 20 * 0.005
