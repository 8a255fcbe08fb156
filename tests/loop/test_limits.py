import time

import pytest
import torch

import fnloop as fl
from fnloop.loop.limits import Limits
from fnloop.store.files import Disk
from fnloop.values.cursor import Cursor

STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))


class Slow(fl.base.Effect):
    """An effect that takes a while to close, and says so."""

    def __init__(self, seconds):
        self.closing = seconds
        self.closed_at = 0.0

    def __call__(self, state, metrics):
        time.sleep(0.01)

    def close(self, status):
        time.sleep(self.closing)
        self.closed_at = time.monotonic()


def fit(seconds, callbacks):
    data = fl.Batches(torch.ones(8, 2), 2)
    return fl.fit(
        STEP, STEP.init(torch.nn.Linear(2, 1)), data, seconds=seconds, callbacks=callbacks
    )


@pytest.mark.lightning("T13")
def test_a_time_limit_leaves_room_for_closing():
    first, second = Slow(0.3), Slow(0.2)
    began = time.monotonic()
    _, history = fit(1.0, [first, second])
    assert (history.status, history.reason) == ("stopped", "the time limit of 1 seconds")
    assert 0.9 < max(first.closed_at, second.closed_at) - began < 1.15


def test_where_closing_takes_longer_than_the_limit_there_is_no_step():
    state, _ = fit(0.1, [Slow(0.2)])
    assert int(state.step) == 0


def test_a_checkpoint_knows_how_long_its_saves_take(tmp_path):
    class SlowDisk(Disk):
        def create(self, path):
            time.sleep(0.1)
            return super().create(path)

    saving = fl.checkpoint(tmp_path, every=1000, unit="step", files=SlowDisk())
    assert saving.closing == 0
    began = time.monotonic()
    state, _ = fit(0.6, [saving])
    took = time.monotonic() - began
    assert 0.3 < saving.closing < 0.3 + took  # two files, and half as much again
    began = time.monotonic()
    data = fl.Batches(torch.ones(8, 2), 2)
    fl.fit(STEP, state, data, seconds=0.6, callbacks=[saving])
    assert time.monotonic() - began < 0.6 + saving.closing / 2, "now it knows"
    assert fl.load(tmp_path, like=state).cursor[2] > state.cursor[2]


def test_other_limits_do_not_look_at_the_clock():
    limits = Limits(Cursor(1, 0, 4), steps=3, epochs=2, seconds=None)
    limits.begin()
    assert not limits.reached(Cursor(2, 0, 6), [Slow(1e9)])
    assert limits.reached(Cursor(1, 3, 7), []) and limits.reached(Cursor(3, 0, 6), [])
