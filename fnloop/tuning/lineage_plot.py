"""The picture of population-based training: what members used, and who took from whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fnloop.loop.plot import COLORS, GREY, label, new_figure, written


def draw_lineage(
    lineage: Any, names: Sequence[str], member: int | None, path: str | Path | None
) -> Any:
    """See `Lineage.plot`."""
    figure = new_figure(6.8, 2.7 * len(names), "lineage(...).plot()")
    first = None
    for position, name in enumerate(names, start=1):
        axes = first = figure.add_subplot(len(names), 1, position, sharex=first)
        _panel(axes, lineage, name, member)
        label(axes, name, "batches" if position == len(names) else "", "")
        axes.tick_params(which="minor", labelsize=7.5, color=GREY, labelcolor=GREY)
        if position == 1:
            axes.legend(frameon=False, fontsize=8.5, loc="best")
    return written(figure, path)


def _panel(axes: Any, lineage: Any, name: str, member: int | None) -> None:
    steps, values = lineage.curve(name)
    for i in range(len(values[0])):
        for piece in _pieces(lineage.checks, lineage.parents, steps, i):
            line = [values[k][who] for k, who in piece]
            at = [steps[k] for k, _ in piece]
            marker = "o" if len(piece) == 1 and piece[0][1] == i else ""
            axes.plot(at, line, color=GREY, linewidth=0.8, alpha=0.45, marker=marker, markersize=2)
            if piece[0][1] != i:  # from the parent's point to the child's first
                axes.plot(at[:2], line[:2], color=COLORS[1], linewidth=1.1, zorder=2.5)
    if any(who != i for parents in lineage.parents for i, who in enumerate(parents)):
        axes.plot([], [], color=COLORS[1], linewidth=1.1, label="goes on from another's state")
    axes.plot([], [], color=GREY, linewidth=0.8, alpha=0.6, label="a member")
    if member is not None:
        title = f"the way to member {member}"
        axes.plot(*lineage.schedule(name, member), color=COLORS[0], linewidth=2.0, label=title)
    finite = [value for row in values for value in row if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) >= 10 * min(finite):
        axes.set_yscale("log")


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
