"""``Halving``: what successive halving has found."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.values.state import State


@dataclasses.dataclass(frozen=True)
class Rung:
    """A part of the run, after which the best members went on.

    Attributes:
        batches: That each of its members has trained for by its end.
        members: Which, by their numbers in the whole population.
        scores: The metric of each at its end.
    """

    batches: int
    members: tuple[int, ...]
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Halving:
    """What `fl.tuning.halving` has found.

    Attributes:
        monitor, mode: By what members were compared.
        values: What the step sweeps, a value for each member.
        rungs: In order; the first has all members.
        state: Of the best member: an ordinary state, to go on with.
        step: The step of the best member, with its values filled in.
    """

    monitor: str
    mode: str
    values: Mapping[str, tuple[float, ...]]
    rungs: tuple[Rung, ...]
    state: State = dataclasses.field(repr=False)
    step: Any = dataclasses.field(repr=False)

    @property
    def best(self) -> int:
        """The number of the best member of the last rung."""
        return self.ranking[0]

    @property
    def cost(self) -> int:
        """Batches that all members together have trained for."""
        begins = [0, *(rung.batches for rung in self.rungs)]
        return sum(
            (rung.batches - begin) * len(rung.members)
            for begin, rung in zip(begins, self.rungs, strict=False)
        )

    @property
    def whole_cost(self) -> int:
        """What it would have been if all members had trained to the end."""
        return self.rungs[-1].batches * len(self.rungs[0].members)

    @property
    def ranking(self) -> list[int]:
        """All members, best first: by how far they got, and then by their last score."""
        found: list[int] = []
        for rung in reversed(self.rungs):
            ordered = [rung.members[i] for i in by_score(rung.scores, self.mode)]
            found += [member for member in ordered if member not in found]
        return found

    def scores(self, member: int) -> list[float]:
        """The metric of a member after each rung that it was in."""
        return [r.scores[r.members.index(member)] for r in self.rungs if member in r.members]

    def table(self, rows: int | None = None) -> str:
        """A line for each member, best first: its values, and its scores after each rung.

        Args:
            rows: Of the best only; default all.
        """
        names = [*self.values]
        header = ["member", *names, *(f"after {rung.batches:,}" for rung in self.rungs)]
        lines = [header]
        for member in self.ranking[:rows]:
            cells = [str(member), *(f"{self.values[name][member]:.4g}" for name in names)]
            scores = [f"{score:.4g}" for score in self.scores(member)]
            lines.append([*cells, *scores, *[""] * (len(self.rungs) - len(scores))])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
        if not math.isnan(self._score):
            texts[1] += "  <- best"
        return "\n".join(map(str.rstrip, texts))

    @property
    def _score(self) -> float:
        """The last score of the best member; nan if all are."""
        return self.scores(self.best)[-1]

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the metric of each member over the batches, up to where it was dropped.

        The color of a member says its value.

        Args:
            path: Image file to write (.png, .pdf, .svg); default none.

        Returns:
            A matplotlib ``Figure``.

        Raises:
            ImportError: Where matplotlib is missing.
        """
        from fnloop.tuning.halving_plot import draw_halving

        return draw_halving(self, path)

    def __repr__(self) -> str:
        sizes = " > ".join(str(len(rung.members)) for rung in self.rungs)
        best = "".join(f", {n} = {row[self.best]:.3g}" for n, row in self.values.items())
        cost = (
            f"({sizes} members; {self.cost:,} batches, of {self.whole_cost:,} for all to the end)"
        )
        if math.isnan(self._score):
            return f"halving: there is no best member: {self.monitor} is nan for all {cost}"
        return f"halving: member {self.best}{best}: {self.monitor} = {self._score:.4g} {cost}"


def by_score(scores: tuple[float, ...], mode: str) -> list[int]:
    """Positions from the best score to the worst; nan is worst, and equal ones keep their order.

    >>> by_score((0.5, math.nan, 0.9, 0.5), "max")
    [2, 0, 3, 1]
    """
    sign = -1.0 if mode == "max" else 1.0
    keys = [math.inf if math.isnan(score) else sign * score for score in scores]
    return sorted(range(len(scores)), key=lambda i: (keys[i], math.isnan(scores[i])))


def sizes(n: int, eta: int, rungs: int | None = None) -> list[int]:
    """Members in each rung: a share of ``1 / eta`` goes on, down to one.

    Args:
        n: In the first.
        eta: As in `fl.tuning.halving`.
        rungs: How many; default until one would be left, who need not train alone.

    >>> sizes(27, 3), sizes(8, 3), sizes(27, 3, 4)
    ([27, 9, 3], [8, 2], [27, 9, 3, 1])
    """
    left = (max(n // eta**k, 1) for k in itertools.count())
    if rungs is not None:
        return list(itertools.islice(left, rungs))
    return list(itertools.takewhile(lambda size: size > 1, left)) or [n]
