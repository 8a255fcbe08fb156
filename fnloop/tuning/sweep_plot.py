"""The picture of a sweep: a line over one hyperparameter, or a map over two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.loop.plot import COLORS, GREY, label, new_figure, written

_DECADE, _FAR = 10.0, 100.0
"""From which ratio on hyperparameters, and metrics, are drawn logarithmically."""


def draw_sweep(
    values: Mapping[str, Sequence[float]],
    scores: Sequence[Sequence[float]],
    metric: str,
    larger: bool,
    path: str | Path | None = None,
) -> Any:
    """Draw a metric over one or two hyperparameters.

    Args:
        values: Of each hyperparameter, by its name.
        scores: The metric of each combination, for one or more seeds; the last hyperparameter
            varies fastest.
        metric: Its name.
        larger: Whether more of it is better.
        path: Image file to write; default none.

    Returns:
        A matplotlib ``Figure``.
    """
    means = [statistics.fmean(row) for row in scores]
    known = [mean for mean in means if math.isfinite(mean)]
    best = means.index((max if larger else min)(known)) if known else None
    if len(values) == 1:
        figure = _line(values, scores, means, metric, best)
    else:
        figure = _map(values, means, metric, larger, best)
    return written(figure, path)


def _line(
    values: Mapping[str, Sequence[float]],
    scores: Sequence[Sequence[float]],
    means: Sequence[float],
    metric: str,
    best: int | None,
) -> Any:
    ((name, row),) = values.items()
    figure = new_figure(5.8, 3.6, "fnloop sweep --plot")
    axes = figure.add_subplot()
    order = sorted(range(len(row)), key=row.__getitem__)
    several = len(scores[0]) > 1
    if several:
        x = [row[p] for p in order for _ in scores[p]]
        y = [score for p in order for score in scores[p]]
        axes.plot(x, y, "o", color=GREY, alpha=0.45, markersize=3.5, label="one seed")
    title = f"mean of {len(scores[0])} seeds" if several else metric
    line = [row[p] for p in order], [means[p] for p in order]
    axes.plot(*line, color=COLORS[0], linewidth=1.8, marker="o", markersize=3.5, label=title)
    if best is not None:
        style = {"color": COLORS[1], "zorder": 3, "label": f"best: {row[best]:.3g}"}
        axes.plot([row[best]], [means[best]], "o", markersize=6.5, **style)
    if _spread(row) >= _DECADE:
        axes.set_xscale("log")
    if _spread([score for each in scores for score in each]) >= _FAR:
        axes.set_yscale("log")
    label(axes, "sweep", name, metric)
    axes.margins(x=0.04)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _map(
    values: Mapping[str, Sequence[float]],
    means: Sequence[float],
    metric: str,
    larger: bool,
    best: int | None,
) -> Any:
    (down, rows), (across, columns) = values.items()
    size = 1.6 + 0.8 * len(columns), 1.4 + 0.5 * len(rows)
    figure = new_figure(max(size[0], 4.6), max(size[1], 3.0), "fnloop sweep --plot")
    axes = figure.add_subplot()
    upward = sorted(range(len(rows)), key=rows.__getitem__)
    rightward = sorted(range(len(columns)), key=columns.__getitem__)
    cells = [[means[r * len(columns) + c] for c in rightward] for r in upward]
    # The worst is pale, and the best is dark.
    height = math.log if _spread(means) >= _FAR else float
    shades = [[height(mean) if math.isfinite(mean) else math.nan for mean in row] for row in cells]
    finite = [shade for row in shades for shade in row if math.isfinite(shade)] or [0.0]
    low, width = min(finite), (max(finite) - min(finite)) or 1.0
    shares = [
        [(s - low) / width if larger else 1 - (s - low) / width for s in row] for row in shades
    ]
    axes.imshow(shares, origin="lower", aspect="auto", cmap="Blues", vmin=-0.1, vmax=1.1)
    for i, r in enumerate(upward):
        for j, c in enumerate(rightward):
            weight = "bold" if r * len(columns) + c == best else "normal"
            ink = "white" if shares[i][j] > 0.55 else "#222222"
            at = {"ha": "center", "va": "center", "fontsize": 8.5, "fontweight": weight}
            axes.text(j, i, f"{cells[i][j]:.3g}", color=ink, **at)
    label(axes, metric, across, down)
    axes.grid(visible=False)
    axes.margins(0)
    axes.set_xticks(range(len(columns)), [f"{columns[c]:g}" for c in rightward])
    axes.set_yticks(range(len(rows)), [f"{rows[r]:g}" for r in upward])
    return figure


def _spread(values: Sequence[float]) -> float:
    """The ratio of the largest to the smallest finite value; 1 unless all are positive."""
    finite = [value for value in values if math.isfinite(value)]
    return max(finite) / min(finite) if finite and min(finite) > 0 else 1.0
