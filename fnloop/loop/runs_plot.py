"""The curves of several runs together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.loop.figures import label, new_figure, written
from fnloop.loop.member_colors import ROWS, legend_outside
from fnloop.loop.plot import Curves, fit_scale, shades_of


def draw_runs(curves: Mapping[str, Curves], path: str | Path | None) -> Any:
    """Draw several runs together: a panel for each metric, a line in it for each run.

    Args:
        curves: By metric, the steps and values of each run.
        path: As for `History.plot`.
    """
    columns = min(2, len(curves))
    lines = math.ceil(len(curves) / columns)
    names = list(dict.fromkeys(name for runs in curves.values() for name in runs))
    beside = math.ceil(len(names) / ROWS) * (0.6 + 0.08 * max(map(len, names)))
    height = max(2.8 * lines, 0.6 + 0.19 * min(len(names), ROWS))
    figure = new_figure(3.8 * columns + beside, height, "fnloop runs --plot")
    shades = dict(zip(names, shades_of(len(names)), strict=True))
    handles: dict[str, Any] = {}
    for position, (title, runs) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(lines, columns, position)
        for name, (steps, values) in runs.items():
            marker = "o" if len(steps) <= 30 else ""
            style = {"linewidth": 1.4, "marker": marker, "markersize": 3}
            (line,) = axes.plot(steps, values, color=shades[name], label=name, **style)
            handles.setdefault(name, line)
        fit_scale(axes, title, [*runs.values()])
        label(axes, title, "batches" if position > len(curves) - columns else "", "")
    legend_outside(figure, [*handles.values()], side="right")
    return written(figure, path)
