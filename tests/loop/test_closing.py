"""Closing a run: each effect once, whatever happens."""

from __future__ import annotations

import json
import signal
import threading

import pytest
import torch
from torch import nn

import fnloop as fl


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))


def data():
    return fl.Batches(torch.arange(20.0).reshape(10, 2), batch_size=4, seed=1)


def state():
    torch.manual_seed(0)
    return STEP.init(nn.Linear(2, 1))


class Noted(fl.base.Effect):
    """Notes what is called, and raises an error in one of them."""

    def __init__(self, name, calls, fails="", error=KeyboardInterrupt):
        self.name, self.calls, self.fails, self.error = name, calls, fails, error

    def call(self, what):
        self.calls.append(f"{self.name} {what}")
        if what == self.fails:
            raise self.error

    def open(self, run):
        self.call("open")

    def __call__(self, state, metrics):
        self.call("step")

    def close(self, status):
        self.call("close")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_one_close_closes_the_others_and_saves(tmp_path, error):
    before, threads, calls = signal.getsignal(signal.SIGINT), threading.active_count(), []
    callbacks = [
        Noted("a", calls, "close", error),
        fl.checkpoint(tmp_path / "run", background=True),
        fl.track(fl.trackers.JSONL(tmp_path / "a.jsonl")),
        Noted("b", calls),
    ]
    with pytest.raises(error) as caught:
        fl.fit(STEP, state(), fl.data.prefetch(data()), steps=2, callbacks=callbacks)
    assert calls[-2:] == ["a close", "b close"] and calls.count("a close") == 1
    assert fl.load(tmp_path / "run", like=caught.value.state) == caught.value.state
    assert int(caught.value.state.cursor[2]) == 2
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before and threading.active_count() == threads


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_effect_that_cannot_be_opened_is_closed_too(tmp_path, error):
    before, calls = signal.getsignal(signal.SIGUSR1), []
    effects = [fl.checkpoint(tmp_path), Noted("a", calls, "open", error), Noted("b", calls)]
    with pytest.raises(error):
        fl.fit(STEP, state(), data(), steps=2, callbacks=effects)
    assert calls == ["a open", "a close"]
    assert signal.getsignal(signal.SIGUSR1) is before and fl.latest(tmp_path) is None


def test_an_error_while_closing_warns_after_all_are_closed():
    calls = []
    effects = [Noted("a", calls, "close", OSError("disk")), Noted("b", calls)]
    with pytest.warns(UserWarning, match="Closing the effect a failed: OSError"):
        fl.fit(STEP, state(), data(), steps=1, callbacks=effects)
    assert calls[-2:] == ["a close", "b close"]


def test_a_late_close_of_a_run_that_another_has_continued_writes_nothing(tmp_path):
    def callbacks():
        track = fl.track(fl.trackers.JSONL(tmp_path / "a.jsonl"), every=2)
        return [fl.checkpoint(tmp_path / "run", every=2, unit="step"), track]

    late = fl.run(STEP, state(), data(), steps=9, callbacks=callbacks())
    for _ in range(3):
        next(late)
    last, _ = fl.fit(STEP, state(), data(), steps=6, callbacks=callbacks(), resume=tmp_path / "run")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    late.close()
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert fl.load(tmp_path / "run", like=last) == last


def test_a_history_whose_close_was_broken_off_knows_how_the_run_ended():
    class Breaking(fl.History):
        def close(self, status):
            if not hasattr(self, "broken"):
                self.broken = True
                raise OSError("as an alarm at its first instruction")
            super().close(status)

    history = Breaking()
    with pytest.warns(UserWarning, match="Closing the effect history failed"):
        _, found = fl.fit(STEP, state(), data(), steps=2, callbacks=[history])
    assert found.status == "completed" and len(found) == 1
