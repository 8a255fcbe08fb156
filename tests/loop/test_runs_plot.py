"""Several runs in one picture."""

from __future__ import annotations

import pytest

from fnloop.loop.runs_plot import draw_runs

pytest.importorskip("matplotlib")


def test_one_legend_for_all_panels_with_one_color_a_run() -> None:
    line = [1, 2, 3], [3.0, 2.0, 1.0]
    runs = {f"runs/{i}": line for i in range(30)}
    figure = draw_runs({"val/loss": runs, "loss": {"runs/7": line, "new": line}}, None)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 31
    first, second = figure.axes
    assert second.get_lines()[0].get_color() == first.get_lines()[7].get_color()
    figure.canvas.draw()
    box = legend.get_window_extent()
    assert not any(axes.get_window_extent().overlaps(box) for axes in figure.axes)
    assert box.y0 >= 0 and box.x1 <= figure.bbox.x1
