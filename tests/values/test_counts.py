"""Every public count: integers of any kind are counts, everything else is refused by its name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.counts import as_count, as_number

X = torch.ones(12, 3)
STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
LOGITS, TARGETS = torch.randn(8, 5), torch.arange(8) % 5


def run_for(**limits):
    state, history = fl.fit(STEP, STEP.init(nn.Linear(3, 1)), fl.Batches(X, 4), **limits)
    return state.cursor.tolist(), history.status


def accumulated(k):
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.accumulate(k))
    return step(step.init(nn.Linear(3, 1)), X)[1].weight.item()


def rule(**fields):
    return repr(fl.guard(fl.rules.spike("loss", **fields))(STEP))


def saved(folder, **fields):
    callbacks = [fl.checkpoint(folder, **fields)]
    fl.fit(STEP, STEP.init(nn.Linear(3, 1)), fl.Batches(X, 4), epochs=3, callbacks=callbacks)
    return sorted(path.name for path in folder.iterdir())


COUNTS = {
    "fit(steps)": lambda n, _: run_for(steps=n),
    "fit(epochs)": lambda n, _: run_for(epochs=n),
    "Batches(batch_size)": lambda n, _: [len(b) for b in fl.Batches(X, n)],
    "prefetch(depth)": lambda n, _: fl.data.prefetch(fl.Batches(X, 4), n).depth,
    "accumulate": lambda n, _: accumulated(n),
    "every(callback)": lambda n, _: repr(fl.every(n, lambda s, m: (s, m), name="mine").n),
    "every(effect)": lambda n, _: fl.every(n, fl.effect(lambda s, m: None))._rhythm.n,
    "checkpoint(keep)": lambda n, folder: saved(folder, keep=n),
    "checkpoint(every)": lambda n, folder: saved(folder, every=n, unit="step"),
    "History(every)": lambda n, _: fl.History(every=n)._points.every,
    "History(states)": lambda n, _: fl.History(states=n)._states.maxlen,
    "track(every)": lambda n, folder: fl.track(fl.trackers.CSV(folder / "a"), every=n).every,
    "early_stopping(patience)": lambda n, _: repr(fl.early_stopping("loss", patience=n)),
    "guard(every)": lambda n, _: repr(fl.guard(lambda s, m: (s, m), every=n)(STEP)),
    "spike(window)": lambda n, _: rule(window=n),
    "spike(warmup)": lambda n, _: rule(warmup=n),
    "spike(patience)": lambda n, _: rule(patience=n),
    "nonfinite(patience)": lambda n, _: repr(fl.rules.nonfinite("loss", patience=n)),
    "amp(interval)": lambda n, _: repr(fl.amp("fp16", interval=n)(fl.grad(lambda m, x: m(x)))),
    "cosine(steps)": lambda n, _: fl.schedules.cosine(1.0, steps=n)(1),
    "cosine(warmup)": lambda n, _: fl.schedules.cosine(1.0, steps=9, warmup=n)(1),
    "exponential(steps)": lambda n, _: fl.schedules.exponential(1.0, 0.5, steps=n)(1),
    "one_cycle(steps)": lambda n, _: fl.schedules.one_cycle(1.0, steps=n, pct_start=0.7).steps,
    "join(boundaries)": lambda n, _: fl.schedules.join([fl.schedules.constant(1.0)] * 2, [n])(3),
    "muon(ns_steps)": lambda n, _: fl.optim.muon(ns_steps=n),
    "top_k_accuracy(k)": lambda n, _: float(fl.metrics.top_k_accuracy(LOGITS, TARGETS, k=n)),
    "confusion(classes)": lambda n, _: fl.metrics.confusion(
        TARGETS % 2, TARGETS % 2, classes=n
    ).matrix.tolist(),
}


@pytest.mark.parametrize("name", COUNTS)
def test_integers_of_numpy_and_torch_are_counts(name, tmp_path):
    expected = repr(COUNTS[name](2, tmp_path / "python"))
    for kind, n in {"a": np.int64(2), "b": np.uint8(2), "c": torch.tensor(2)}.items():
        assert repr(COUNTS[name](n, tmp_path / kind)) == expected


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("wrong", [2.0, 1e4, 2.5, math.nan, math.inf, True, "2", np.float64(2)])
def test_what_is_no_integer_is_refused_with_what_it_was(name, wrong, tmp_path):
    with pytest.raises(TypeError, match=r"takes a whole number.*, got .*\((float|bool|str)"):
        COUNTS[name](wrong, tmp_path)


@pytest.mark.parametrize("name", COUNTS)
def test_a_negative_count_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"of at least \d, got -1|positive and increase"):
        COUNTS[name](-1, tmp_path)


@pytest.mark.parametrize("seed", [np.int64(-3), np.uint8(3), torch.tensor(3), 2**70])
def test_the_seed_of_batches_is_any_integer(seed):
    data = fl.Batches(X.cumsum(0), 4, seed=seed)
    same = fl.Batches(X.cumsum(0), 4, seed=int(seed))
    assert all(map(torch.equal, data, same)) and type(data.about()["seed"]) is int
    with pytest.raises(TypeError, match="seed takes a whole number, got"):
        fl.Batches(X, 4, seed=0.5)


@pytest.mark.parametrize("seconds", [math.nan, -1, -0.1, -math.inf])
def test_a_run_of_no_length_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds= takes a number of at least 0, got"):
        run_for(steps=1, seconds=seconds)


@pytest.mark.parametrize("seconds", ["3", None, torch.ones(2), True])
def test_what_is_no_duration_is_refused(seconds):
    if seconds is None:
        assert run_for(steps=1, seconds=None)[1] == "completed"
        return
    with pytest.raises(TypeError, match="seconds= takes a number of at least 0, got"):
        run_for(steps=1, seconds=seconds)


@pytest.mark.parametrize("seconds", [np.float32(60), np.int64(60), torch.tensor(60.0), math.inf])
def test_durations_of_any_kind(seconds):
    assert run_for(steps=1, seconds=seconds) == ([0, 4, 1], "completed")


def test_limits_are_checked_before_a_checkpoint_is_read(tmp_path):
    state = STEP.init(nn.Linear(3, 1))
    with pytest.raises(TypeError, match="epochs= takes a whole number"):
        fl.fit(STEP, state, fl.Batches(X, 4), epochs=math.nan, resume=tmp_path)


def test_as_count_and_as_number():
    assert type(as_count(np.int64(3), "n")) is int and type(as_number(np.float32(3), "n")) is float
    with pytest.raises(ValueError, match="n takes a number above 0, got 0"):
        as_number(0, "n", above=True)
    with pytest.raises(TypeError, match="n takes a number"):
        as_number(10**400, "n")
