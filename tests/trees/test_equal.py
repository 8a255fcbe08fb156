"""Bitwise equality and readable differences."""

from __future__ import annotations

import re
from typing import Any

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


@fl.tree
class Scaled:
    factor: float
    power: int = 2
    inner: Any = None


@pytest.mark.parametrize(
    ("a", "b", "row"),
    [
        ((1, 2), [1, 2], ["", "tuple", "list", "container"]),
        (None, {}, ["", "None", "dict", "container"]),
        (
            {"slots": {"every.x": {"loss": fl.Mean(1.0, 1.0)}}},
            {"slots": {"every.x": {"loss": {"total": 1.0, "weight": 1.0}}}},
            ["slots/every.x/loss", "Mean", "dict", "container"],
        ),
        ({"s": Scaled(1.0, 2)}, {"s": Scaled(1.0, 3)}, ["s/power", "2", "3", "static field"]),
        (
            [Scaled(1.0, inner=())],
            [Scaled(1.0, inner=[])],
            ["0/inner", "tuple", "list", "container"],
        ),
        ({"x": 1, "m": {}}, {"x": 1}, ["m", "dict", "-", "only in a"]),
        ({"x": 1}, {"x": 1, "m": ()}, ["m", "-", "tuple", "only in b"]),
        (
            fl.Tensors({"a": torch.ones(1), "b": torch.ones(1)}),
            fl.Tensors({"b": torch.ones(1), "a": torch.ones(1)}),
            ["", "Tensors", "Tensors", "order or static data"],
        ),
    ],
)
def test_a_difference_of_containers_says_where(a, b, row):
    lines = fl.tree_diff(a, b).splitlines()
    found = re.split(r"\s{2,}", lines[-1])
    assert found == row
    assert fl.tree_diff(a, a) == ""


def test_containers_are_listed_besides_leaves():
    a, b = {"x": 1, "y": (1,)}, {"x": 2, "y": [1]}
    assert [line.split() for line in fl.tree_diff(a, b).splitlines()[1:]] == [
        ["x", "1", "2", "value"],
        ["y", "tuple", "list", "container"],
    ]


def test_a_long_static_field_is_cut():
    @fl.tree
    class Named:
        leaf: float
        text: str

    row = fl.tree_diff(Named(1.0, "a" * 200), Named(1.0, "b" * 200)).splitlines()[1]
    assert len(row) < 160
    assert "..." in row
