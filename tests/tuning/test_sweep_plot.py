"""The picture of a sweep."""

from __future__ import annotations

import itertools
import math

import pytest

from fnloop.tuning.sweep_plot import draw_sweep

pytest.importorskip("matplotlib")

RATES = [1e-4, 1e-3, 1e-2, 0.1]


def in_legends(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_rates_over_decades_are_logarithmic_and_the_best_is_named():
    figure = draw_sweep({"lr": RATES}, [[0.7], [0.5], [0.1], [0.2]], "val/loss", False)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_yscale() == "linear"
    assert (axes.get_title("left"), axes.get_xlabel()) == ("val/loss", "lr")
    assert in_legends(figure) == ["best: 0.01"]
    assert in_legends(draw_sweep({"lr": RATES}, [[1], [2], [1], [1]], "x", True)) == ["best: 0.001"]


def test_zero_has_a_place_beside_decades():
    (axes,) = draw_sweep({"wd": [0.0, *RATES]}, [[1.0]] * 5, "val/loss", False).axes
    assert axes.get_xscale() == "symlog"
    places = axes.transData.transform([(value, 1.0) for value in (0.0, *RATES)])[:, 0]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert min(gaps) > 0.3 * max(gaps)


def test_what_diverges_is_marked_at_the_top():
    scores = [[0.5, 0.7], [0.1, 0.2], [1e30, 1e30], [math.nan, 0.4]]
    figure = draw_sweep({"lr": RATES}, scores, "val/loss", False)
    (axes,) = figure.axes
    assert axes.get_ylim()[1] < 10
    (lost,) = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert list(lost.get_xdata()) == [0.01, 0.1]
    assert in_legends(figure)[-1] == "far above, or not finite"
    nothing = draw_sweep({"lr": RATES}, [[math.nan]] * 4, "val/loss", False)
    assert in_legends(nothing) == ["not finite"]


@pytest.mark.parametrize("n", [3, 14])
def test_a_map_has_numbers_where_they_can_be_read(n):
    rows = [10.0**-i for i in range(n)]
    scores = [
        [math.nan if i == j == 0 else 1.0 + abs(i - 2) + j] for i in range(n) for j in range(n)
    ]
    figure = draw_sweep({"lr": rows, "momentum": rows}, scores, "val/loss", False)
    axes = figure.axes[0]
    assert len(axes.texts) == (9 if n == 3 else 0)
    assert len(figure.axes) == (1 if n == 3 else 2)  # a color bar
    assert len(axes.get_xticks()) <= 10
    if n == 3:
        (best,) = [text for text in axes.texts if text.get_fontweight() == "bold"]
        assert best.get_text() == "1" and "nan" in [text.get_text() for text in axes.texts]
    else:
        assert in_legends(figure) == ["best: lr 0.01, momentum 1"]
