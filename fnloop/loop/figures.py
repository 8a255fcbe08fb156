"""Figures of matplotlib as all pictures of fnloop have them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

COLORS = ("#2f6fb0", "#e07b39", "#4a9d6e", "#a05fa8", "#8c6d4f")
GREY = "#666666"
INK = "#222222"


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


def ratio(values: Iterable[float]) -> float:
    """The ratio of the largest to the smallest finite value; 1 unless all are positive.

    >>> ratio([0.5, 2.0, math.nan]), ratio([0.0, 2.0])
    (4.0, 1.0)
    """
    finite = [value for value in values if math.isfinite(value)]
    return max(finite) / min(finite) if finite and min(finite) > 0 else 1.0


def logarithmic(axes: Any, which: Literal["x", "y"], of: Iterable[float]) -> None:
    """Make an axis logarithmic, with plain numbers at it where it shows few decades.

    Args:
        axes: The panel.
        which: Of its axes.
        of: What it shows.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = math.log10(ratio(of))
    if decades < 3:
        steps = (1, 2, 5) if decades < 1.5 else (1,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _png(figure: Any) -> tuple[bytes, dict[str, int]]:
    """The picture, and its size in a notebook: half as many points as it has pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    width, height = figure.get_size_inches() * figure.dpi / 2
    return file.getvalue(), {"width": int(width), "height": int(height)}
