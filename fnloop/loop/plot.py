"""The curves of a run's metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from fnloop.effects.points import subset_of
from fnloop.effects.spans import grouped
from fnloop.loop.figures import COLORS, INK, label, logarithmic, new_figure, ratio, written
from fnloop.loop.member_colors import MemberColors, differ, legend_outside, swept_by
from fnloop.values.monitored import larger_is_better

Line: TypeAlias = tuple[list[int], list[float]]
Curves: TypeAlias = Mapping[str, Line]

WIDE = 15.0
"""From which ratio on between members, or of a peak to a median, an axis is logarithmic."""

FAR = 1e4
"""Values above so many times the median are those of members that diverge: not in the picture."""


LOST = "not finite from here"


class _Panel(NamedTuple):
    """What is drawn in one panel.

    Attributes:
        title: Above it.
        metric: The metric without prefix; panels of one metric have one scale.
        groups: Of each subset of the data its lines: several where a metric has many values.
    """

    title: str
    metric: str
    groups: dict[str, list[Line]]

    def lines(self) -> Iterator[Line]:
        """All of them."""
        for group in self.groups.values():
            yield from group


def draw(
    curves: Curves,
    path: str | Path | None,
    names: Sequence[str] | None,
    members: int | None = None,
    swept: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Any:
    """See `History.plot`.

    Args:
        curves: Steps and values by metric name.
        path, names: As there.
        members: How many members the population has; None for a single run.
        swept: Of a sweep, the value of each member by hyperparameter.
    """
    apart = differ(swept)
    panels = _panels(curves, names, members, apart)
    columns = 2 if apart or len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(max(3.5 * columns, 4.6) + 0.9 * apart, 2.7 * rows, "history.plot()")
    colors = swept_by(swept)
    subsets = list(dict.fromkeys(["train", *(s for panel in panels for s in panel.groups)]))
    shades = dict(zip(subsets, shades_of(len(subsets)), strict=True))
    drawn: dict[str, Any] = {}
    for position, panel in enumerate(panels, start=1):
        first = drawn.get(panel.metric)
        axes = figure.add_subplot(rows, columns, position, sharey=first)
        drawn.setdefault(panel.metric, axes)
        for subset, group in panel.groups.items():
            if colors is not None and len(group) == members:
                _swept(axes, group, colors)
            else:
                _group(axes, subset, shades[subset], group)
        label(axes, panel.title, "batches" if position > len(panels) - columns else "", "")
        if first is None:
            alike = [line for p in panels if p.metric == panel.metric for line in p.lines()]
            fit_scale(axes, panel.metric, alike)
        for group in panel.groups.values():
            own = colors.of_members if colors is not None and len(group) == members else ()
            _ends(axes, group, own or [INK] * len(group))
    _explain(figure, colors)
    return written(figure, path)


def shades_of(number: int) -> Sequence[Any]:
    """A color for each of so many lines: of all hues where there are many."""
    if number <= len(COLORS):
        return COLORS[:number]
    from matplotlib import colormaps

    return [colormaps["turbo"](0.05 + 0.9 * i / (number - 1)) for i in range(number)]


def _panels(
    curves: Curves, names: Sequence[str] | None, members: int | None, apart: bool
) -> list[_Panel]:
    """The panels in their order; with `apart`, each subset of a population's metric has its own."""
    panels: dict[str, _Panel] = {}
    for full_name, group in grouped(curves, members).items():
        name, subset = subset_of(full_name)
        if names is not None and not any(each in names for each in (name, full_name, *group)):
            continue
        title = full_name if apart and len(group) == members else name
        panel = panels.setdefault(title, _Panel(title, name, {}))
        panel.groups[subset] = [curves[each] for each in group]
    if not panels:
        raise ValueError(
            f"There is nothing to draw: names={names}, and the history has "
            f"{', '.join(curves) or 'no metrics yet'}."
        )
    moving = [
        panel
        for panel in panels.values()
        if any(map(_moves, panel.lines())) and not panel.metric.endswith("/parent")  # of a lineage
    ]
    found = moving if moving and names is None else [*panels.values()]
    metrics = list(dict.fromkeys(panel.metric for panel in found))
    return sorted(found, key=lambda panel: metrics.index(panel.metric))


def _moves(line: Line) -> bool:
    """Whether a curve says more than one number does; a single point is not known to be level."""
    values = line[1]
    return len(values) == 1 or len({*values}) > 1 or not math.isfinite(values[0])


def _group(axes: Any, subset: str, color: Any, group: Sequence[Line]) -> None:
    """A line; or the lines of all members of a population, and with them their median."""
    if len(group) == 1:
        steps, values = group[0]
        marker = "o" if len(steps) <= 30 else ""
        style = {"linewidth": 1.6, "marker": marker, "markersize": 3.5}
        axes.plot(steps, values, color=color, label=subset, **style)
        return
    few = len(group) <= 3
    alpha = 0.8 if few else max(0.08, 2 / len(group))
    for steps, values in group:
        axes.plot(steps, values, color=color, linewidth=1.3 if few else 0.8, alpha=alpha)
    if few:
        axes.plot([], [], color=color, linewidth=1.3, label=f"{subset}, {len(group)} members")
    else:
        title = f"{subset}, median of {len(group)}"
        axes.plot(*_median(group), color=color, linewidth=1.8, label=title)


def _swept(axes: Any, group: Sequence[Line], colors: MemberColors) -> None:
    """The line of each member of a sweep; of several seeds their median, too."""
    several = len({*colors.points}) < len(group)
    width = 1.5 if len(group) <= 12 else 0.9 if len(group) <= 60 else 0.6
    wide = {"linewidth": width, "alpha": 0.9}
    style = {"linewidth": 0.7, "alpha": 0.3} if several else wide
    for (steps, values), color in zip(group, colors.of_members, strict=True):
        marker = "o" if len(steps) == 1 else ""
        axes.plot(steps, values, color=color, marker=marker, markersize=3, **style)
    for point in sorted({*colors.points}) if several else ():
        alike = [i for i, own in enumerate(colors.points) if own == point]
        color = colors.of_members[alike[0]]
        axes.plot(*_median([group[i] for i in alike]), color=color, linewidth=1.6)


def _median(group: Sequence[Line]) -> Line:
    """The median of the finite values, where all have some."""
    steps = min((steps for steps, _ in group), key=len)
    rows = zip(*[values[-len(steps) :] for _, values in group], strict=True)
    known = [[value for value in row if math.isfinite(value)] for row in rows]
    return steps, [statistics.median(row) if row else math.nan for row in known]


def _ends(axes: Any, group: Sequence[Line], colors: Sequence[Any]) -> None:
    """A cross where a curve ends, as it is not finite from there on."""
    top = axes.get_ylim()[1]
    for (steps, values), color in zip(group, colors, strict=True):
        known = [k for k, value in enumerate(values) if math.isfinite(value)]
        if known and not math.isfinite(values[-1]):
            at = steps[known[-1]], min(values[known[-1]], top)
            axes.plot(*at, "x", color=color, markersize=5, clip_on=False, label=LOST)


def fit_scale(axes: Any, metric: str, lines: Sequence[Line]) -> None:
    """A logarithmic axis where members are far apart, or one is at times; without what diverges.

    A metric of which more is better, such as an accuracy, is most interesting at its upper end, and
    its axis is linear.
    """
    known = [[value for value in values if math.isfinite(value)] for _, values in lines]
    known = [values for values in known if values]
    middles = [statistics.median(values) for values in known]
    every = [value for values in known for value in values]
    within = every
    if len(known) > 1 and (middle := statistics.median(every)) > 0:
        within = [value for value in every if value <= FAR * middle]
    jumps = min(within, default=0) > 0 and max(within) >= WIDE * max(middles)
    if (jumps or ratio(middles) >= WIDE) and not larger_is_better(metric):
        low = min(middles) / 100  # a rate that ends at zero would need many decades
        shown = [value for value in within if value >= low]
        logarithmic(axes, "y", shown)
        if len(shown) < len(every):
            axes.set_ylim(min(shown) / 1.5, 1.5 * max(shown))
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set(fontsize=8.5)
        if len(within) < len(every):
            axes.set_ylim(top=1.1 * max(within))


def _explain(figure: Any, colors: MemberColors | None) -> None:
    """One legend for all panels."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, texts = axes.get_legend_handles_labels()
        found |= dict(zip(texts, handles, strict=True))
    others = [] if list(found) == ["train"] else [*found.values()]
    if colors is None:
        legend_outside(figure, others)
    else:
        colors.explain(figure, figure.axes, others)
