"""Plots of a run's metrics."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fnloop.effects.points import subset_of
from fnloop.effects.spans import grouped

Curves: TypeAlias = Mapping[str, tuple[list[int], list[float]]]

COLORS = ("#2f6fb0", "#e07b39", "#4a9d6e", "#a05fa8", "#8c6d4f")
GREY = "#666666"


def draw(curves: Curves, path: str | Path | None, names: Sequence[str] | None) -> Any:
    """See `History.plot`; `curves` are steps and values by metric name."""
    panels = _panels(curves, names)
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(max(4.6 * columns, 5.2), 3.2 * lines, "history.plot()")
    for position, (title, subsets) in enumerate(panels.items(), start=1):
        _panel(figure.add_subplot(lines, columns, position), title, subsets, curves)
    return written(figure, path)


def draw_runs(curves: Mapping[str, Curves], path: str | Path | None) -> Any:
    """Draw several runs together: a panel for each metric, a line in it for each run.

    Args:
        curves: By metric, the steps and values of each run.
        path: As for `History.plot`.
    """
    columns = min(3, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = new_figure(max(5.2 * columns, 5.8), 3.6 * lines, "fnloop runs --plot")
    for position, (title, runs) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(lines, columns, position)
        for color, (name, line) in zip(_shades(len(runs)), runs.items(), strict=True):
            _lines(axes, name, color, [line])
        label(axes, title, "batches", title)
        axes.legend(frameon=False, fontsize=8, loc="best")
    return written(figure, path)


def _shades(number: int) -> Sequence[Any]:
    """A color for each of so many lines: of all hues where there are many."""
    if number <= len(COLORS):
        return COLORS[:number]
    from matplotlib import colormaps

    return [colormaps["turbo"](i / (number - 1)) for i in range(number)]


def new_figure(width: float, height: float, who: str) -> Any:
    """A matplotlib ``Figure`` that shows itself in a notebook.

    Args:
        width, height: In inches.
        who: What draws, for the error where matplotlib is missing.

    Raises:
        ImportError: Where it is.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # pyplot, which would show it in a notebook, may never be imported.
        class Curves(Figure):
            _repr_png_ = _png
    except ImportError as error:
        raise ImportError(
            f"{who} needs matplotlib, which is not installed: pip install fnloop[plot]"
        ) from error
    figure = Curves(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def written(figure: Any, path: str | Path | None) -> Any:
    """Write a figure to a file, if there is one; returns the figure."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def label(axes: Any, title: str, x: str, y: str) -> None:
    """Title and labels of a panel, and light axes."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=GREY)
    axes.set_ylabel(y, fontsize=9, color=GREY)
    axes.tick_params(labelsize=8.5, color=GREY, labelcolor=GREY)
    axes.margins(x=0.02)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _png(figure: Any) -> tuple[bytes, dict[str, int]]:
    """The picture, and its size in a notebook: half as many points as it has pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    width, height = figure.get_size_inches() * figure.dpi / 2
    return file.getvalue(), {"width": int(width), "height": int(height)}


def _panels(curves: Curves, names: Sequence[str] | None) -> dict[str, dict[str, list[str]]]:
    """For each panel title, the full names by subset: several where a metric has many values."""
    panels: dict[str, dict[str, list[str]]] = {}
    for full_name, members in grouped(curves).items():
        name, subset = subset_of(full_name)
        if names is None or any(each in names for each in (name, full_name, *members)):
            panels.setdefault(name, {})[subset] = members
    if not panels:
        raise ValueError(
            f"There is nothing to draw: names={names}, and the history has "
            f"{', '.join(curves) or 'no metrics yet'}."
        )
    return panels


def _panel(axes: Any, title: str, subsets: dict[str, list[str]], curves: Curves) -> None:
    colors = COLORS * len(subsets)
    for color, (subset, members) in zip(colors, subsets.items(), strict=False):
        _lines(axes, subset, color, [curves[name] for name in members])
    label(axes, title, "batches", title)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    axes.yaxis.get_offset_text().set(fontsize=8.5, color=GREY)
    if len(axes.get_lines()) > 1 or "train" not in subsets:
        axes.legend(frameon=False, fontsize=9, loc="best")


def _lines(
    axes: Any, subset: str, color: str, curves: Sequence[tuple[list[int], list[float]]]
) -> None:
    """A line; or the lines of all members of a population, and with them their median."""
    if len(curves) == 1:
        steps, values = curves[0]
        marker = "o" if len(steps) <= 30 else ""
        style = {"linewidth": 1.6, "marker": marker, "markersize": 3.5}
        axes.plot(steps, values, color=color, label=subset, **style)
        return
    for steps, values in curves:
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=max(0.15, 2 / len(curves)))
    steps = min((steps for steps, _ in curves), key=len)
    rows = zip(*[values[-len(steps) :] for _, values in curves], strict=True)
    medians = [statistics.median(row) for row in rows]
    name = f"{subset}, median of {len(curves)}"
    axes.plot(steps, medians, color=color, linewidth=1.8, label=name)
