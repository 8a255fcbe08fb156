"""The result of a sweep: a table of its members, the best flags, a picture."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.cli import run_report
from fnloop.cli.evaluate_command import results
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import effects_of
from fnloop.cli.swept import Lists, as_flags
from fnloop.effects.spans import number
from fnloop.loop.history import History
from fnloop.tuning.sweep_plot import draw_sweep
from fnloop.values.monitored import larger_is_better
from fnloop.values.state import State

Scores = dict[str, list[float]]
"""By metric, a value for each member."""


def scores(recipe: Recipe, state: State, history: History, size: int) -> Scores | None:
    """The metrics of each member on the validation data; without any, the last training loss."""
    parts = run_report.parts_of(recipe.data)
    parts = {name: part for name, part in parts.items() if name.partition("/")[0] == "val"}
    found = dict(results(recipe, state, parts)) if parts else {}
    if not found and len(history):
        names = ["loss[0]"] if "loss[0]" in history else []
        row = {f"loss[{i}]": history[f"loss[{i}]"][-1] for i in range(size) if names}
        found = {"train": row}
    of_members = Scores()
    for part, row in found.items():
        for name in row:
            base = name.removesuffix("[0]")
            columns = [f"{base}[{i}]" for i in range(size)]
            if base != name and all(column in row for column in columns):
                of_members[f"{part}/{base}"] = [row[column] for column in columns]
    return of_members or None


class Ranked:
    """The members of a sweep, best first.

    Args:
        recipe: What was trained.
        points: The flags of each point of the grid.
        seeds: How many members each point has.
        scores: Of all members: all points with the first seed, then with the second.
    """

    def __init__(
        self, recipe: Recipe, points: Sequence[Mapping[str, Any]], seeds: int, scores: Scores
    ) -> None:
        self.points, self.seeds, self.scores = points, seeds, scores
        self.metric, self.larger = _judged_by(recipe, scores)
        self._first = recipe.seed

    @property
    def title(self) -> str:
        """What the table shows."""
        order = "largest" if self.larger else "smallest"
        return f"last state, {order} {self.metric} first"

    def table(self) -> str:
        """A line for each member."""
        flags = list(self.points[0])
        seeds = ["seed"] if self.seeds > 1 else []
        lines = [[*flags, *seeds, *self.scores]]
        for i in sorted(range(len(self.scores[self.metric])), key=self._key):
            point, seed = self._place(i)
            own = [f"{self._first + seed}"] if seeds else []
            values = [number(self.scores[name][i]) for name in self.scores]
            lines.append([*(f"{value:.6g}" for value in point.values()), *own, *values])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)

    def best(self) -> int | None:
        """The number of the best point, by the mean over its seeds; None if all are nan."""
        means = self.means()
        best = min(range(len(means)), key=lambda p: self._rank(means[p]))
        return None if math.isnan(means[best]) else best

    def best_text(self) -> str:
        """The best flags."""
        means, best = self.means(), self.best()
        if best is None:
            return f"none: {self.metric} is nan for all"
        point = self.points[best]
        if not point:
            spread = statistics.stdev(self.scores[self.metric])
            return f"{self.metric} {number(means[best])}, with a deviation of {number(spread)}"
        text = as_flags(point)
        if self.seeds > 1:
            text += f"  (mean of {self.seeds} seeds: {number(means[best])})"
        return text

    def notes(self, lists: Lists) -> Iterator[str]:
        """Warn of the best value's being the first or last of its list."""
        best = self.best()
        for name, values in lists.items() if best is not None else ():
            ends = {min(values): "smallest", max(values): "largest"}
            value = self.points[best or 0][name]
            if len(values) > 2 and value and (which := ends.get(value)):
                yield f"it has the {which} --{name} of the list: a better one may lie beyond"

    def means(self) -> list[float]:
        """The metric of each point, over its seeds."""
        row, size = self.scores[self.metric], len(self.points)
        return [statistics.fmean(row[p::size]) for p in range(size)]

    def write(self, path: Path) -> None:
        """Write the table as CSV, in the order of the members."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["member", *self.points[0], "seed", *self.scores])
            for i in range(len(self.scores[self.metric])):
                point, seed = self._place(i)
                values = [self.scores[name][i] for name in self.scores]
                writer.writerow([i, *point.values(), self._first + seed, *values])

    def plot(self, lists: Lists, path: str) -> None:
        """Draw the metric over the swept flags."""
        row, size = self.scores[self.metric], len(self.points)
        draw_sweep(lists, [row[p::size] for p in range(size)], self.metric, self.larger, path)

    def _place(self, i: int) -> tuple[Mapping[str, Any], int]:
        seed, point = divmod(i, len(self.points))
        return self.points[point], seed

    def _key(self, i: int) -> float:
        return self._rank(self.scores[self.metric][i])

    def _rank(self, value: float) -> float:
        return math.inf if math.isnan(value) else -value if self.larger else value


def _judged_by(recipe: Recipe, scores: Scores) -> tuple[str, bool]:
    """The metric that decides, and whether more of it is better: what the recipe monitors."""
    inner = [getattr(callback, "inner", callback) for callback in recipe.callbacks]
    for one in [*effects_of(recipe), *inner]:
        name, mode = getattr(one, "monitor", None), getattr(one, "mode", None)
        if name in scores and mode in ("min", "max"):
            return str(name), mode == "max"
    losses = [name for name in scores if name.rpartition("/")[2] == "loss"]
    name = (losses or list(scores))[0]
    return name, larger_is_better(name)
