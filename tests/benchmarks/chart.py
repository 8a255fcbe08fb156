"""The step times as a picture: a panel for each case, a bar for each contender."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .contenders import CONTENDERS, DONATED, FUSED, JAX, LIGHTNING

SHOWN = {
    FUSED: "by hand, AdamW fused",
    "by hand, compiled loss": "by hand, compiled loss",
    "by hand, one graph, C++ wrapper": "by hand, one graph",
    LIGHTNING: "Lightning",
    "Accelerate": "Accelerate",
    JAX: "JAX, jit",
    "fnloop, eager": "fnloop, eager",
    "fnloop, compiled": "fnloop, compiled",
    DONATED: "fnloop, compiled, donated",
}
_ACCENT, _GREY, _INK = "#4051b5", "#b9bec9", "#30343c"
_POINTS = {
    FUSED: ("o", _GREY),
    "by hand, compiled loss": ("s", _GREY),
    JAX: ("D", "#d9822b"),
    DONATED: ("o", _ACCENT),
}
LONGEST = 2.0  # longer bars are cut, and say so


def draw(cases: dict[str, Any], threads: int, file: Path) -> None:
    """Write the chart of some cases as a PNG, 1,600 pixels wide; it is made for half of that."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure(cases, threads).savefig(file)


def draw_screen(cases: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Write the chart of all models: a line of points for each, ratios by contender."""
    file.parent.mkdir(parents=True, exist_ok=True)
    screen_figure(cases).savefig(file)


def screen_figure(cases: Mapping[str, Mapping[str, float]]) -> Figure:
    """The chart of all models, in the given order."""
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    whole = Figure(figsize=(8, 1.0 + 0.26 * len(cases)), dpi=200, layout="constrained")
    ax = whole.subplots()
    ax.axvline(1, color=_INK, linewidth=0.7, linestyle=(0, (3, 2)))
    ax.hlines(range(len(cases)), 0, LONGEST, color=_GREY, linewidth=0.4)
    for name, (marker, colour) in _POINTS.items():
        points = [(ratios[name], y) for y, ratios in enumerate(cases.values()) if name in ratios]
        x, y = [min(x, LONGEST) for x, _ in points], [y for _, y in points]
        ax.plot(x, y, marker, color=colour, markersize=6, label=SHOWN[name], clip_on=False)
    ax.set_yticks(range(len(cases)), list(cases), fontsize=8, color=_INK)
    ax.set_xlim(0, LONGEST)
    ax.set_xticks([0, 0.5, 1, 1.5, LONGEST], ["0", "0.5", "1", "1.5", f"{LONGEST:.0f} or more"])
    ax.tick_params(length=0, labelsize=8, labelcolor=_INK)
    ax.invert_yaxis()
    ax.spines[["top", "right", "bottom", "left"]].set_visible(False)
    whole.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    ax.set_title(
        "Time of a training step, 1 thread; the best loop by hand is 1 (left is faster)",
        fontsize=9,
        color=_INK,
    )
    return whole


def figure(cases: dict[str, Any], threads: int) -> Figure:
    """The chart of some cases.

    Args:
        cases: Of `steps.compare`, by case.
        threads: With which they were measured.
    """
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    lines = (len(cases) + 1) // 2
    whole = Figure(figsize=(8, 0.75 + 1.95 * lines), dpi=200, layout="constrained")
    axes = whole.subplots(lines, 2, squeeze=False)
    for ax in axes.flat[len(cases) :]:
        ax.set_visible(False)
    for ax, (case, figures) in zip(axes.flat, cases.items(), strict=False):
        _panel(ax, case, figures)
    plural = "s" if threads > 1 else ""
    whole.suptitle(
        f"Time of a training step, {threads} thread{plural}; "
        "the best loop by hand around torch.optim is 1 (shorter is faster)",
        fontsize=9,
        color=_INK,
    )
    return whole


def _panel(ax: Axes, case: str, figures: Any) -> None:
    rows = {row["name"].removesuffix(" *"): row for row in figures["rows"]}
    names = [name for name in SHOWN if name in rows and name in CONTENDERS]
    ratios = [rows[name]["ratio"] for name in names]
    colours = [_ACCENT if CONTENDERS[name].group == "fnloop" else _GREY for name in names]
    places = range(len(names))
    ax.barh(places, [min(ratio, LONGEST) for ratio in ratios], 0.72, color=colours)
    ax.axvline(1, color=_INK, linewidth=0.7, linestyle=(0, (3, 2)))
    for place, ratio in zip(places, ratios, strict=True):
        text = f"{ratio:.2f}" if ratio <= LONGEST else f"{ratio:.1f} \N{RIGHTWARDS ARROW}"
        # On white, so that the dashed line does not cross it.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        x = min(ratio, LONGEST) + 0.035
        ax.text(x, place, text, va="center", fontsize=7, color=_INK, bbox=box)
    best = rows[figures["baseline"]]["median"]
    ax.set_title(f"{case} (1 = {_time(best)})", fontsize=8, loc="left", color=_INK, pad=3)
    ax.set_yticks(places, [SHOWN[name] for name in names], fontsize=7, color=_INK)
    ax.set_xlim(0, LONGEST * 1.16)
    ax.set_xticks([])
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def _time(us: float) -> str:
    return f"{us:.0f} µs" if us < 1000 else f"{us / 1000:.1f} ms"
