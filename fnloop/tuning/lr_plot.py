"""The picture of a learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fnloop.loop.figures import COLORS, GREY, label, new_figure, written


def draw(
    name: str,
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    path: str | Path | None,
) -> Any:
    """See `LrSearch.plot`."""
    figure = new_figure(5.8, 3.6, "find_lr(...).plot()")
    axes = figure.add_subplot()
    raw, averaged = (_finite(lrs, values) for values in (losses, smoothed))
    axes.plot(*raw, color=GREY, alpha=0.45, linewidth=0.9, label="loss")
    axes.plot(*averaged, color=COLORS[0], linewidth=1.8, label="smoothed")
    if suggestion is not None:
        height = smoothed[lrs.index(suggestion)]
        style = {"color": COLORS[1], "zorder": 3, "label": f"suggestion: {suggestion:.2g}"}
        axes.plot([suggestion], [height], "o", markersize=6.5, **style)
    axes.set_xscale("log")
    label(axes, "learning-rate range test", name, "loss")
    if raw[1]:
        axes.set_ylim(*_limits(raw[1], averaged[1]))
    axes.legend(frameon=False, fontsize=9, loc="best")
    return written(figure, path)


def _finite(lrs: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    points = [(lr, value) for lr, value in zip(lrs, values, strict=True) if math.isfinite(value)]
    return [lr for lr, _ in points], [value for _, value in points]


def _limits(losses: Sequence[float], averages: Sequence[float]) -> tuple[float, float]:
    """From the lowest loss to the highest average: single losses at the end are far above it."""
    low, high = min(losses), max(averages)
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin
