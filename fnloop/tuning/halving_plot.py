"""The picture of successive halving."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fnloop.loop.figures import COLORS, INK, label, logarithmic, new_figure, ratio, written
from fnloop.loop.member_colors import DECADE, legend_outside, swept_by


def draw_halving(found: Any, path: str | Path | None) -> Any:
    """See `Halving.plot`."""
    figure = new_figure(6.6, 3.6, "halving(...).plot()")
    colors = swept_by(found.values)
    axes = figure.add_subplot()
    batches = [rung.batches for rung in found.rungs]
    for member in reversed(found.ranking):
        scores = found.scores(member)
        color = COLORS[0] if colors is None else colors.of_members[member]
        axes.plot(batches[: len(scores)], scores, color=color, linewidth=1.1, alpha=0.8)
        axes.plot(batches[len(scores) - 1], scores[-1], "o", color=color, markersize=3.5)
    value = "".join(f", {name} = {row[found.best]:.3g}" for name, row in found.values.items())
    style = {"color": INK, "linewidth": 1.8, "label": f"member {found.best}, the best{value}"}
    (best,) = axes.plot(batches, found.scores(found.best), **style)
    known = [s for r in found.rungs for s in r.scores if math.isfinite(s)]
    if ratio(known) >= DECADE:
        logarithmic(axes, "y", known)
    if ratio(batches) >= DECADE:
        axes.set_xscale("log")
    axes.set_xticks(batches, [f"{each:,}" for each in batches])
    axes.tick_params(axis="x", which="minor", bottom=False)
    title = "successive halving: " + " > ".join(str(len(r.members)) for r in found.rungs)
    label(axes, title, "batches of a member", found.monitor)
    if colors is None:
        legend_outside(figure, [best])
    else:
        colors.explain(figure, [axes], [best])
    return written(figure, path)
