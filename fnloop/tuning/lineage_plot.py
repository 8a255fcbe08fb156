"""The picture of population-based training: what members used, and who took from whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fnloop.loop.figures import COLORS, GREY, INK, label, logarithmic, new_figure, ratio, written
from fnloop.loop.member_colors import DECADE, legend_outside, swept_by


def draw_lineage(
    lineage: Any, names: Sequence[str], member: int | None, path: str | Path | None
) -> Any:
    """See `Lineage.plot`."""
    figure = new_figure(7.2, 2.7 * len(names), "lineage(...).plot()")
    colors = swept_by(lineage.swept)
    n = len(lineage.founders)
    shades = [COLORS[0]] * n if colors is None else colors.of_members
    first: Any = None
    for position, name in enumerate(names, start=1):
        axes = first = figure.add_subplot(len(names), 1, position, sharex=first)
        _panel(axes, lineage, name, member, shades)
        label(axes, name, "batches" if position == len(names) else "", "")
    handles = _handles(figure, lineage, member)
    if colors is None:
        legend_outside(figure, handles)
    else:
        colors.title = f"begun with {colors.title}"
        colors.explain(figure, figure.axes, handles)
    return written(figure, path)


def _handles(figure: Any, lineage: Any, member: int | None) -> list[Any]:
    """What the legend says beside colors."""
    from matplotlib.lines import Line2D

    found: list[Any] = []
    if any(p != i for parents in lineage.parents for i, p in enumerate(parents)):
        style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3.5, "color": GREY}
        found.append(Line2D([], [], label="dropped for another's state", **style))
    lines = figure.axes[0].get_lines()
    return [*found, *(lines[-1:] if member is not None else ())]


def _panel(axes: Any, lineage: Any, name: str, member: int | None, shades: Sequence[Any]) -> None:
    """A tree for each founder, in its color: where a state was taken, a line branches off."""
    steps, values = lineage.curve(name)
    many = len(shades) > 30
    for i in range(len(shades)):
        for piece in _pieces(lineage.checks, lineage.parents, steps, i):
            line = [values[k][who] for k, who in piece]
            at = [steps[k] for k, _ in piece]
            color = shades[_founder(lineage, steps[piece[-1][0]], i)]
            axes.plot(at, line, color=color, linewidth=0.7 if many else 1.2, alpha=0.8)
            if at[-1] < steps[-1]:
                axes.plot(at[-1], line[-1], "o", color=color, markersize=2 if many else 3.5)
    if member is not None:
        title = f"the way to member {member}"
        axes.plot(*lineage.schedule(name, member), color=INK, linewidth=1.8, label=title)
    known = [value for row in values for value in row if math.isfinite(value)]
    if ratio(known) >= DECADE:
        logarithmic(axes, "y", known)


def _founder(lineage: Any, step: int, member: int) -> int:
    """Whose state, of those at the beginning, a member had at some step."""
    passed = [p for check, p in zip(lineage.checks, lineage.parents, strict=True) if check < step]
    for parents in reversed(passed):
        member = parents[member]
    return member


def _pieces(
    checks: Sequence[int], parents: Sequence[Sequence[int]], steps: Sequence[int], member: int
) -> list[list[tuple[int, int]]]:
    """The curve of a member, cut where it took a state: (row, whose value) of each point.

    A piece that begins with a state that was taken begins at the parent's point.
    """
    taken = {c: p[member] for c, p in zip(checks, parents, strict=True) if p[member] != member}
    pieces: list[list[tuple[int, int]]] = [[]]
    for row, step in enumerate(steps):
        pieces[-1].append((row, member))
        if step in taken:
            pieces.append([(row, taken[step])])
    return pieces
