"""Colors for the members of a sweep, in the order of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fnloop.loop.figures import GREY, ratio

FEW = 6
"""Up to so many different members have a line in a legend each; for more there is a color bar."""

DECADE = 10.0
"""From which ratio on hyperparameters are drawn logarithmically."""


ROWS = 18
"""Lines in a column of a legend, at most."""


class MemberColors:
    """A color for each member of a sweep: the darker, the smaller its value.

    Members with the same values (an ensemble of a sweep has them) have one color. A hyperparameter
    that follows from others, as it moves together with them, is not named.

    Args:
        values: Of each hyperparameter, the value of each member.

    Attributes:
        title: What the colors say.
        points: Of each member, the place of its values among all that differ, in their order.
        of_members: The color of each member.
        labels: The values of each point as text; empty where there are many.

    >>> made = MemberColors({"adamw.lr": [0.1, 0.001, 0.1]})
    >>> made.title, made.points, made.labels
    ('adamw.lr', [1, 0, 1], ['0.001', '0.1'])
    """

    def __init__(self, values: Mapping[str, Sequence[float]]) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, LogNorm, Normalize

        names, rows = _apart(values)
        different = sorted({*rows})
        self.points = [different.index(row) for row in rows]
        whole = colormaps["viridis"]
        shades = ListedColormap([whole(0.9 * i / 255) for i in range(256)])  # not the pale end
        self._scale: Any = None
        if len(different) <= FEW:
            self.title = ", ".join(names)
            self.labels = [", ".join(f"{value:.4g}" for value in row) for row in different]
            self._shades = [shades(i / max(len(different) - 1, 1)) for i in range(len(different))]
        else:
            first, *others = names
            self.title = f"{first} ({' and '.join(others)} differ)" if others else first
            self.labels = list[str]()
            own = [row[0] for row in different]
            norm: Any = LogNorm if ratio(own) >= DECADE else Normalize
            self._scale = ScalarMappable(norm(min(own), max(own)), shades)
            self._shades = [self._scale.to_rgba(value) for value in own]
        self.of_members = [self._shades[point] for point in self.points]

    def explain(self, figure: Any, axes: Sequence[Any], others: Sequence[Any] = ()) -> None:
        """Draw a legend of the values, or a color bar, to the right of the panels.

        Args:
            figure: What they are in.
            axes: The panels.
            others: Handles for a legend above them, of what else there is.
        """
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=color, linewidth=2.0, label=text)
            for text, color in zip(self.labels, self._shades, strict=False)
        ]
        if self._scale is not None:
            bar = figure.colorbar(self._scale, ax=[*axes], fraction=0.04, pad=0.02, aspect=28)
            bar.set_label(self.title, fontsize=9, color=GREY)
            bar.ax.tick_params(labelsize=8.5, color=GREY, labelcolor=GREY)
            bar.outline.set_visible(False)
        legend_outside(figure, handles, self.title, "right")
        legend_outside(figure, others)


def legend_outside(
    figure: Any, handles: Sequence[Any], title: str | None = None, side: str = "upper"
) -> None:
    """A legend that covers no panel: to the right of all, or above them; none without handles."""
    if not handles:
        return
    place = "outside right upper" if side == "right" else "outside upper left"
    columns = math.ceil(len(handles) / ROWS) if side == "right" else min(len(handles), 4)
    legend = figure.legend(
        handles=handles, loc=place, ncols=columns, title=title, frameon=False, fontsize=9
    )
    legend.get_title().set(fontsize=9, color=GREY)
    legend._legend_box.align = "left"


def _apart(values: Mapping[str, Sequence[float]]) -> tuple[list[str], list[tuple[float, ...]]]:
    """The names that are needed to tell the members apart, and the values of each member."""
    names: list[str] = []
    rows = [()] * len(next(iter(values.values()), ()))
    for name, row in values.items():
        longer = [(*known, value) for known, value in zip(rows, row, strict=True)]
        if len({*longer}) > len({*rows}):
            names, rows = [*names, name], longer
    return names, rows


def differ(values: Mapping[str, Sequence[float]]) -> bool:
    """Whether members have values that differ, and can be ordered."""
    finite = all(math.isfinite(value) for row in values.values() for value in row)
    return finite and bool(_apart(values)[0])


def swept_by(values: Mapping[str, Sequence[float]]) -> MemberColors | None:
    """The colors of a sweep; None if its members do not `differ`."""
    return MemberColors(values) if differ(values) else None
