"""Bitwise equality and readable differences."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl

NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (torch.tensor([NAN]), torch.tensor([NAN]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor(1.0), torch.tensor([1.0]), False),
        (torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64), False),
        (torch.empty(0, 3), torch.empty(0, 3), True),
        (torch.ones(2, 3).t(), torch.ones(3, 2), True),
        (torch.tensor(True), torch.tensor(True), True),
        (torch.tensor(1 + 2j), torch.tensor(1 + 2j), True),
        (torch.tensor([1 + 2j]).imag, torch.tensor([2.0]), True),  # one element, odd stride
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), True),
        (NAN, NAN, True),
        (0.0, -0.0, False),
        (1, 1.0, False),
        ({"a": 1}, {"b": 1}, False),
        ((1, 2), [1, 2], False),
        (None, {}, False),
    ],
)
def test_equality(a, b, equal):
    assert fl.tree_equal(a, b) is equal


def test_a_difference_says_where_and_how_much():
    a = {
        "same": torch.ones(2),
        "w": torch.tensor([1.0, 2.0, NAN]),
        "old": 1,
        "shape": torch.ones(2),
        "n": 1,
    }
    b = {
        "same": torch.ones(2),
        "w": torch.tensor([1.0, 2.5, NAN]),
        "new": 1,
        "shape": torch.ones(3),
        "n": 2,
    }
    assert fl.tree_diff(a, b).splitlines() == [
        "path   a       b       difference",
        "n      1       2       value",
        "old    1       -       only in a",
        "shape  f32[2]  f32[3]  shape",
        "w      f32[3]  f32[3]  1 of 3 values, at most 0.5",
        "new    -       1       only in b",
    ]
    assert fl.tree_diff(a, a) == ""
    assert "bits only" in fl.tree_diff(torch.tensor(0.0), torch.tensor(-0.0))
