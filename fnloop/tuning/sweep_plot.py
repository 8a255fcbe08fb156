"""The picture of a sweep: a line over one hyperparameter, or a map over two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.loop.figures import COLORS, GREY, INK, label, logarithmic, new_figure, ratio, written
from fnloop.loop.member_colors import DECADE, legend_outside
from fnloop.loop.plot import FAR

_WIDE = 100.0
"""From which ratio on metrics are drawn logarithmically."""

_CELLS = 10
"""Columns and rows of a map up to which there is a number in each cell; else a color bar."""


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
        figure = _line(values, scores, means, metric, larger, best)
    else:
        figure = _map(values, means, metric, larger, best)
    return written(figure, path)


def _line(
    values: Mapping[str, Sequence[float]],
    scores: Sequence[Sequence[float]],
    means: Sequence[float],
    metric: str,
    larger: bool,
    best: int | None,
) -> Any:
    ((name, row),) = values.items()
    figure = new_figure(5.8, 3.6, "fnloop sweep --plot")
    axes = figure.add_subplot()
    order = sorted(range(len(row)), key=row.__getitem__)
    seeds = len(scores[0])
    if seeds > 1:
        x = [row[p] for p in order for _ in scores[p]]
        y = [score for p in order for score in scores[p]]
        axes.plot(x, y, "o", color=GREY, alpha=0.45, markersize=3.5, label="one seed")
    line = [row[p] for p in order], [means[p] for p in order]
    marker = "o" if len(row) <= 60 else ""
    style = {"color": COLORS[0], "linewidth": 1.8, "marker": marker, "markersize": 3.5}
    axes.plot(*line, **style, label=f"mean of {seeds} seeds" if seeds > 1 else None)
    if best is not None:
        style = {"color": COLORS[1], "zorder": 3, "label": f"best: {row[best]:.3g}"}
        axes.plot([row[best]], [means[best]], "o", markersize=6.5, **style)
    label(axes, metric, name, "")
    axes.margins(x=0.04)
    _over(axes, row)
    far = _up(axes, [score for each in scores for score in each], larger)
    if lost := [row[p] for p in order if not math.isfinite(means[p]) or means[p] > far]:
        at = [axes.get_ylim()[1]] * len(lost)
        title = "not finite" if math.isinf(far) else "far above, or not finite"
        axes.plot(lost, at, "x", color=INK, markersize=5, clip_on=False, label=title)
    legend_outside(figure, axes.get_legend_handles_labels()[0])
    return figure


def _over(axes: Any, row: Sequence[float]) -> None:
    """The axis of the hyperparameter: logarithmic over decades, also where its first value is 0."""
    above = [value for value in row if value > 0]
    if min(row) == 0 and ratio(above) >= DECADE:
        axes.set_xscale("symlog", linthresh=min(above), linscale=0.5)
        axes.set_xlim(left=-0.1 * min(above))
    elif ratio(row) >= DECADE:
        logarithmic(axes, "x", row)


def _up(axes: Any, scores: Sequence[float], larger: bool) -> float:
    """The axis of the metric; what is above the returned value is not in the picture."""
    known = [score for score in scores if math.isfinite(score)]
    if not known:
        axes.set_yticks([])
        return math.inf
    middle = statistics.median(known)
    cut = middle > 0 and not larger
    within = [score for score in known if score <= FAR * middle] if cut else known
    if ratio(within) >= _WIDE:
        logarithmic(axes, "y", within)
    if len(within) == len(known):
        return math.inf
    low, high = axes.get_ylim()
    margin = 1.5 if axes.get_yscale() == "log" else 1.1
    axes.set_ylim(max(low, min(within) / margin), min(high, margin * max(within)))
    return max(within)


def _map(
    values: Mapping[str, Sequence[float]],
    means: Sequence[float],
    metric: str,
    larger: bool,
    best: int | None,
) -> Any:
    (down, rows), (across, columns) = values.items()
    many = max(len(rows), len(columns)) > _CELLS
    size = (6.6, 4.6) if many else (1.6 + 0.7 * len(columns), 1.4 + 0.42 * len(rows))
    figure = new_figure(max(size[0], 4.6), max(size[1], 3.0), "fnloop sweep --plot")
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    axes = figure.add_subplot()
    upward = sorted(range(len(rows)), key=rows.__getitem__)
    rightward = sorted(range(len(columns)), key=columns.__getitem__)
    cells = [[means[r * len(columns) + c] for c in rightward] for r in upward]
    known = [mean for mean in means if math.isfinite(mean)] or [1.0]
    norm: Any = (LogNorm if ratio(known) >= _WIDE else Normalize)(min(known), max(known))
    # The best is dark, the worst is pale, and what is not finite is grey.
    shades = colormaps["Blues" if larger else "Blues_r"].with_extremes(bad="#e4e4e4")
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=shades, norm=norm)
    if many:
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=28)
        bar.ax.tick_params(labelsize=8.5, color=GREY, labelcolor=GREY)
        bar.outline.set_visible(False)
    for i, r in enumerate(upward):
        for j, c in enumerate(rightward):
            if r * len(columns) + c == best and many:
                title = f"best: {down} {rows[r]:.3g}, {across} {columns[c]:.3g}"
                axes.plot(j, i, "o", color=COLORS[1], markersize=6.5, label=title)
                legend_outside(figure, axes.get_legend_handles_labels()[0])
            elif not many:
                weight = "bold" if r * len(columns) + c == best else "normal"
                red, green, blue, _ = image.to_rgba(cells[i][j])
                ink = INK if red + green + blue > 1.6 else "white"
                at = {"ha": "center", "va": "center", "fontsize": 8.5, "fontweight": weight}
                axes.text(j, i, f"{cells[i][j]:.3g}", color=ink, **at)
    label(axes, metric, across, down)
    axes.grid(visible=False)
    axes.margins(0)
    axes.set_xticks(*_ticks([columns[c] for c in rightward]))
    axes.set_yticks(*_ticks([rows[r] for r in upward]))
    return figure


def _ticks(row: Sequence[float]) -> tuple[list[int], list[str]]:
    """Places of cells and their values as text: of all, or of some where there are many."""
    places = [*range(0, len(row), math.ceil(len(row) / _CELLS))]
    return places, [f"{row[place]:.3g}" for place in places]
