"""``fl.tuning.lineage``: who took the state of whom."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fnloop as fl
from fnloop.loop.member_colors import swept_by
from fnloop.tuning.lineage_plot import _pieces
from fnloop.values.parents import Parents


class Rows(list):
    """What a history is to `lineage`."""


@pytest.fixture
def found():
    rows = Rows()
    for step, rates, parents in (
        (5, (0.1, 0.2, 0.3), None),
        (10, (0.1, 0.2, 0.3), (2, 1, 2)),
        (15, (0.5, 0.2, 0.3), None),
        (20, (0.5, 0.2, 0.3), (0, 0, 2)),
        (25, (0.5, 0.6, 0.3), None),
    ):
        row = {"epoch": 1, "step": step, **{f"sgd.lr[{i}]": r for i, r in enumerate(rates)}}
        row |= {f"lineage/parent[{i}]": float(p) for i, p in enumerate(parents or ())}
        rows.append(row)
    return fl.tuning.lineage(rows)


def test_the_way_of_a_member(found):
    assert found.checks == (10, 20) and found.parents == ((2, 1, 2), (0, 0, 2))
    assert found.founders == [2, 2, 2]
    assert found.ancestors(1) == [2, 0, 1] and found.ancestors(-1) == [2, 2, 2]
    assert found.schedule("sgd.lr", 1) == ([5, 10, 15, 20, 25], [0.3, 0.3, 0.5, 0.5, 0.6])
    assert repr(found) == "lineage: 2 states taken at 2 checks; 1 of 3 founders left"
    with pytest.raises(KeyError, match=r"adamw\.lr.*sgd\.lr"):
        found.schedule("adamw.lr", 1)


def test_a_curve_is_cut_where_a_state_was_taken(found):
    steps, _ = found.curve("sgd.lr")
    assert _pieces(found.checks, found.parents, steps, 1) == [
        [(0, 1), (1, 1), (2, 1), (3, 1)],
        [(3, 0), (4, 1)],
    ]


def test_the_picture(found, tmp_path):
    pytest.importorskip("matplotlib")
    figure = found.plot("sgd.lr", member=1, path=tmp_path / "lineage.png")
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["dropped for another's state", "the way to member 1"]
    assert (tmp_path / "lineage.png").stat().st_size > 5000


def test_lines_have_the_color_of_their_founder(found):
    pytest.importorskip("matplotlib")
    found = dataclasses.replace(found, swept={"sgd.lr": [0.1, 0.2, 0.3]})
    (axes,) = found.plot("sgd.lr").axes
    colors = swept_by(found.swept).of_members
    pieces = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
    founders = [colors.index(line.get_color()) for line in pieces]
    assert founders == [0, 2, 1, 2, 2]  # 0, then from 2; 1, then from 0, which was 2; 2 itself
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert sorted(line.get_xdata()[0] for line in dots) == [10, 20]


def test_a_history_without_one():
    with pytest.raises(KeyError, match=r"fl\.population"):
        fl.tuning.lineage(Rows())


def test_parents_are_a_monoid():
    draw = torch.Generator().manual_seed(0)
    a, b, c = (Parents(torch.randint(5, (5,), generator=draw)) for _ in range(3))
    assert fl.tree_equal(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert fl.tree_equal(a.merge(a.empty()), a) and fl.tree_equal(a.empty().merge(a), a)
    who = torch.arange(5)
    assert torch.equal(a.merge(b).value(), who[a.value()][b.value()])
