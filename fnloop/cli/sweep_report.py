"""The result of a sweep: a table of its members, the best flags, a picture."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fnloop.cli import run_report
from fnloop.cli.evaluate_command import results
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import effects_of
from fnloop.cli.sweep_folder import Scores, Sweep, as_flags
from fnloop.cli.sweep_members import by_member
from fnloop.effects.spans import number
from fnloop.loop.history import History
from fnloop.tuning.sweep_plot import draw_sweep
from fnloop.values.monitored import larger_is_better
from fnloop.values.state import State


class Scored(NamedTuple):
    """What is known of the members in the end.

    Attributes:
        of: What the metrics are of.
        scores: The metrics.
    """

    of: str
    scores: Scores


def scored(recipe: Recipe, state: State, history: History, size: int) -> Scored | None:
    """The metrics of each member on the validation data; without any, on the training data.

    If that cannot be read again, or has not been read to its end once (which may take longer than
    the sweep), they are the last training losses in the history.
    """
    for which in ("val", "train") if state.cursor[0] else ("val",):
        parts = run_report.parts_of(recipe.data)
        parts = {name: part for name, part in parts.items() if name.partition("/")[0] == which}
        found = by_member(dict(results(recipe, state, parts)), size) if parts else {}
        if found:
            return Scored("last state", found)
    losses = [f"loss[{i}]" for i in range(size)]
    if not set(losses) <= set(history.names):
        return None
    return Scored("last report of training", {"train/loss": [history[n][-1] for n in losses]})


class Ranked:
    """The members of a sweep, best first.

    Args:
        recipe: What was trained.
        sweep: Its members.
        scored: What is known of them.
    """

    def __init__(self, recipe: Recipe, sweep: Sweep, scored: Scored) -> None:
        self.sweep, self.scores, self._of = sweep, scored.scores, scored.of
        self.points, self.seeds = sweep.points, len(sweep.seeds)
        self.metric, self.larger = _judged_by(recipe, self.scores)
        row = self.scores[self.metric]
        self.order = sorted(range(sweep.size), key=lambda i: self._rank(row[i]))

    @property
    def title(self) -> str:
        """What the table shows."""
        order = "largest" if self.larger else "smallest"
        return f"{self._of}, {order} {self.metric} first"

    def table(self) -> str:
        """A line for each member."""
        return self.sweep.table(self.scores, self.order)

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

    def notes(self) -> Iterator[str]:
        """Warn of the best value's being the first or last of its list."""
        best = self.best()
        for name, values in self.sweep.lists.items() if best is not None else ():
            ends = {min(values): "smallest", max(values): "largest"}
            value = self.points[best or 0][name]
            if len(values) > 2 and value and (which := ends.get(value)):
                yield f"it has the {which} --{name} of the list: a better one may lie beyond"

    def means(self) -> list[float]:
        """The metric of each point, over its seeds."""
        row, size = self.scores[self.metric], len(self.points)
        return [statistics.fmean(row[p::size]) for p in range(size)]

    def write(self, path: Path) -> None:
        """Write the table as CSV, in the order of the members; those without a value no rank."""
        ranks = {i: rank for rank, i in enumerate(self.order, 1)}
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["member", *self.sweep.lists, "seed", *self.scores, "rank"])
            for i in range(self.sweep.size):
                point, seed = self.sweep.place(i)
                values = [row[i] for row in self.scores.values()]
                rank = "" if math.isnan(self.scores[self.metric][i]) else ranks[i]
                writer.writerow([i, *point.values(), seed, *values, rank])

    def plot(self, path: str) -> None:
        """Draw the metric over the swept flags."""
        row, size = self.scores[self.metric], len(self.points)
        values = [row[p::size] for p in range(size)]
        draw_sweep(self.sweep.lists, values, self.metric, self.larger, path)

    def _rank(self, value: float) -> float:
        return math.inf if math.isnan(value) else -value if self.larger else value


def _judged_by(recipe: Recipe, scores: Scores) -> tuple[str, bool]:
    """The metric that decides, and whether more of it is better: what the recipe monitors."""
    inner = [getattr(callback, "inner", callback) for callback in recipe.callbacks]
    for one in [*effects_of(recipe), *inner]:
        name, mode = getattr(one, "monitor", None), getattr(one, "mode", None)
        known = [each for each in (name, f"train/{name}") if each in scores]
        if known and mode in ("min", "max"):
            return known[0], mode == "max"
    losses = [name for name in scores if name.rpartition("/")[2] == "loss"]
    name = (losses or list(scores))[0]
    return name, larger_is_better(name)
