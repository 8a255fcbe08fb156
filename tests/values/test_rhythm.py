"""Every how many steps, epochs, fractions of an epoch, or seconds."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from fnloop.values.cursor import Cursor
from fnloop.values.rhythm import Pace, Rhythm

WHO = "every(n, ...)"


def due(n, batches, epochs, size=1):
    """The counts at which it is due, where a batch has `size` examples, the last one fewer."""
    rhythm = Rhythm(n, "epoch", WHO).begun(Pace(batches, size))
    found, count = [], 0
    for epoch in range(epochs):
        for batch in range(1, batches + 1):
            count += 1
            ends = batch == batches
            cursor = Cursor(epoch + ends, 0 if ends else batch * size, count)
            found += [count] if rhythm.is_due(cursor) else []
    return found


@pytest.mark.lightning("T17")
@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize(
    ("n", "batches", "epochs", "expected"),
    [
        (0.25, 10, 2, [3, 5, 8, 10, 13, 15, 18, 20]),
        (0.5, 3, 2, [2, 3, 5, 6]),
        (0.1, 10, 1, list(range(1, 11))),
        (0.1, 3, 1, [1, 2, 3]),  # more often than there are batches
        (1 / 3, 9, 2, [3, 6, 9, 12, 15, 18]),
        (1.5, 4, 6, [6, 12, 18, 24]),
        (1.0, 4, 2, [4, 8]),
        (2, 4, 4, [8, 16]),
        (0.25, 1, 3, [1, 2, 3]),
    ],
)
def test_fractions_of_an_epoch(n, batches, epochs, expected, size):
    assert due(n, batches, epochs, size) == expected


def test_a_whole_number_of_epochs_needs_no_length():
    rhythm = Rhythm(2.0, "epoch", WHO).begun(Pace())
    assert rhythm.n == 2 and not isinstance(rhythm.n, Fraction)
    assert rhythm.is_due(Cursor(2, 0, 9)) and not rhythm.is_due(Cursor(1, 0, 4))
    assert not rhythm.is_due(Cursor(2, 1, 10)) and not rhythm.is_due(Cursor(0, 0, 0))


def test_a_fraction_of_an_epoch_needs_its_length():
    with pytest.raises(ValueError, match=r"every 0.25 epochs.*unit=\"step\""):
        Rhythm(0.25, "epoch", WHO).begun(Pace(None))


def test_seconds_are_struck_once():
    rhythm = Rhythm(0.05, "second", WHO).begun(Pace())
    assert rhythm.is_timed and not rhythm.is_late() and not rhythm.is_due(Cursor(0, 1, 1))
    time.sleep(0.06)
    assert rhythm.is_late()
    rhythm.strike(7)
    assert not rhythm.is_late()
    assert [count for count in range(10) if rhythm.is_due(Cursor(0, count, count))] == [7]


@pytest.mark.parametrize(
    ("n", "unit", "error", "message"),
    [
        (0, "step", ValueError, "at least 1"),
        (0.5, "step", TypeError, "whole number"),
        (0, "epoch", ValueError, "at least 1"),
        (-0.5, "epoch", ValueError, "above 0"),
        (float("nan"), "epoch", ValueError, "above 0"),
        (0, "second", ValueError, "above 0"),
        ("1", "second", TypeError, "a number above 0"),
        (1, "batch", ValueError, 'expected "step", "epoch" or "second"'),
    ],
)
def test_other_rhythms_are_refused(n, unit, error, message):
    with pytest.raises(error, match=message):
        Rhythm(n, unit, WHO)
