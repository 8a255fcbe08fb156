"""Colors say the values of a sweep."""

from __future__ import annotations

import math

import pytest

from fnloop.loop.figures import logarithmic, new_figure
from fnloop.loop.member_colors import ROWS, MemberColors, legend_outside, swept_by

pytest.importorskip("matplotlib")


def test_a_grid_names_what_tells_its_members_apart() -> None:
    grid = MemberColors({"sgd.lr": [0.1, 0.1, 0.2, 0.2], "sgd.momentum": [0.0, 0.9, 0.0, 0.9]})
    assert grid.title == "sgd.lr, sgd.momentum"
    assert grid.labels == ["0.1, 0", "0.1, 0.9", "0.2, 0", "0.2, 0.9"]
    together = MemberColors({"a.lr": [0.1, 0.2], "b.lr": [1.0, 2.0], "c": [5.0, 5.0]})
    assert (together.title, together.labels) == ("a.lr", ["0.1", "0.2"])
    many = MemberColors({"sgd.lr": [1.0, 2.0, 3.0, 4.0] * 2, "sgd.momentum": [0.0] * 4 + [0.9] * 4})
    assert many.title == "sgd.lr (sgd.momentum differ)" and many.labels == []
    assert many.of_members[0] == many.of_members[4] != many.of_members[1]


def test_members_that_do_not_differ_have_none() -> None:
    assert swept_by({}) is None
    assert swept_by({"sgd.lr": [0.1, 0.1]}) is None
    assert swept_by({"sgd.lr": [0.1, math.inf]}) is None


def test_a_long_legend_has_columns_and_covers_no_panel() -> None:
    figure = new_figure(9.0, 4.0, "a test")
    axes = figure.add_subplot()
    lines = [axes.plot([0, 1], [0, i], label=f"runs/{i}")[0] for i in range(2 * ROWS)]
    legend_outside(figure, lines, side="right")
    figure.canvas.draw()
    (legend,) = figure.legends
    box, inside = legend.get_window_extent(), figure.bbox
    assert not axes.get_window_extent().overlaps(box)
    assert box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1


@pytest.mark.parametrize(("high", "expected"), [(8.0, "5"), (500.0, "100"), (1e6, None)])
def test_numbers_at_a_logarithmic_axis(high: float, expected: str | None) -> None:
    figure = new_figure(4.0, 3.0, "a test")
    axes = figure.add_subplot()
    axes.plot([0, 1], [1.0, high])
    logarithmic(axes, "y", [1.0, high])
    figure.canvas.draw()
    texts = [tick.get_text() for tick in axes.get_yticklabels()]
    assert expected in texts if expected else all("10^" in text for text in texts if text)
