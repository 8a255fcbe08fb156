"""Waiting for data, in the loop that trains."""

from __future__ import annotations

import time

import pytest

import fnloop as fl
from fnloop.data.sources import as_source
from fnloop.profiling.loop_times import timed_loop

from .planted import BATCHES, Slow, X, Y, made


def test_waiting_is_a_part_of_the_loop():
    step, state = made()
    found = timed_loop(step, state, as_source(Slow()), 3)
    assert 0.1 <= found.waiting <= found.seconds and found.steps == 3
    assert found.fastest <= found.seconds - found.waiting and len(found.batches) == 2


def test_batches_that_are_read_ahead_are_not_waited_for():
    def slow_loss(model, batch):
        time.sleep(0.15)
        return (model(batch[0]) - batch[1]).square().mean()

    step, state = made(slow_loss)
    ahead = timed_loop(step, state, as_source(fl.data.prefetch(Slow())), 3)
    behind = timed_loop(step, state, as_source(Slow()), 3)
    assert ahead.waiting < behind.waiting and behind.waiting >= 0.1


def test_the_loop_goes_on_from_the_cursor():
    seen = []

    def watching(model, batch):
        seen.append(batch)
        return (model(batch[0]) - batch[1]).square().mean()

    step, state = made(watching)
    state, _ = fl.fit(step, state, BATCHES, steps=2)
    expected = [
        batch
        for _, (_, batch) in zip(
            range(3), BATCHES.iterate(fl.data.Cursor.of(state.cursor), int(state.key)), strict=False
        )
    ]
    seen.clear()
    timed_loop(step, state, as_source(BATCHES), 1)
    assert fl.tree_equal(seen[:3], expected)


def test_data_without_end_or_with_one_batch():
    step, state = made()
    assert timed_loop(step, state, as_source((X, Y)), 4).steps == 4


def test_too_little_data():
    step, state = made()

    def epochs(epoch):
        return [(X, Y)] if epoch == 0 else []

    with pytest.raises(ValueError, match="batch"):
        timed_loop(step, state, as_source(epochs), 4)
