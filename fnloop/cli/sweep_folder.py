"""``sweep.yaml``: what a sweep trains."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.cli import config, yaml_dialect
from fnloop.cli.messages import Problem, shown, usage
from fnloop.effects.spans import number
from fnloop.transforms.population import ensemble, sweep

NAME = "sweep.yaml"
TABLE = "sweep.csv"
"""The members with their metrics, written at the end."""

Lists = dict[str, list[Any]]
"""The values of each swept flag."""

Scores = dict[str, list[float]]
"""By metric, a value for each member."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep trains: each combination of some flags' values, from each seed.

    Members are numbered: all combinations with the first seed, then all with the second.

    Attributes:
        recipe: The recipe's file.
        flags: All flags of the first member.
        lists: The values of the flags that are swept.
        seeds: Of the members with the same flags.
        numbers: The numbers of the step that differ: a value for each combination.
        loop: Whether members are trained one after the other.
        chunk: How many are vmapped at a time; None for all.
    """

    recipe: Path
    flags: dict[str, Any]
    lists: Lists
    seeds: list[int]
    numbers: dict[str, list[float]]
    loop: bool = False
    chunk: int | None = None

    @functools.cached_property
    def points(self) -> list[dict[str, Any]]:
        """The swept flags of each combination."""
        return points_of(self.lists)

    @property
    def size(self) -> int:
        """How many members it has."""
        return len(self.seeds) * len(self.points)

    def place(self, i: int) -> tuple[dict[str, Any], int]:
        """The swept flags and the seed of member `i`."""
        seed, point = divmod(i, len(self.points))
        return self.points[point], self.seeds[seed]

    def numbers_of(self, i: int) -> dict[str, float]:
        """The swept numbers of the step of member `i`."""
        return {name: row[i % len(row)] for name, row in self.numbers.items()}

    def about(self, i: int) -> str:
        """Member `i` as text.

        >>> Sweep(Path("a.py"), {}, {"lr": [0.1, 0.2]}, [0, 1], {}).about(3)
        'member 3 of 4: --lr 0.2, seed 1'
        """
        point, seed = self.place(i)
        own = [as_flags(point)] if point else []
        own += [f"seed {seed}"] if len(self.seeds) > 1 else []
        return f"member {i} of {self.size}: {', '.join(own)}"

    def table(self, scores: Scores, order: Sequence[int] | None = None) -> str:
        """A line for each member, in this order.

        >>> print(Sweep(Path("a.py"), {}, {"lr": [0.1, 0.2]}, [0], {}).table({"loss": [3, 2.5]}))
        member   lr  loss
             0  0.1     3
             1  0.2   2.5
        """
        seeds = ["seed"] if len(self.seeds) > 1 else []
        lines = [["member", *self.lists, *seeds, *scores]]
        for i in range(self.size) if order is None else order:
            point, seed = self.place(i)
            own = [f"{value:.6g}" for value in point.values()] + [str(seed) for _ in seeds]
            lines.append([str(i), *own, *(number(row[i]) for row in scores.values())])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)

    def population(self, step: Any) -> Any:
        """The step of all members, of the step of the first.

        Raises:
            Problem: The step lacks a number that was swept.
        """
        many, mode = step.uncompiled, "loop" if self.loop else "vmap"
        try:
            if self.numbers:
                many = sweep(many, self.numbers, mode=mode)
        except ValueError as error:
            raise Problem(f"The recipe has changed since this sweep was trained: {error}") from None
        if len(self.seeds) > 1 or not self.numbers:
            many = ensemble(many, len(self.seeds), mode=mode)
        if self.chunk is not None:
            many = dataclasses.replace(many, chunk=self.chunk)
        return many if step.uncompiled is step else dataclasses.replace(step, inner=many)

    def goes_on_with(self, there: Sweep) -> bool:
        """Whether it trains the same members as another, which may be in another folder."""
        return self._members() == there._members()

    def _members(self) -> str:
        """What tells them: as text, where nan is nan, and the order of lists counts."""
        flags = {n: v for n, v in self.flags.items() if n != "folder"}
        members = [self.recipe.name, flags, self.lists, self.seeds, self.numbers]
        return yaml_dialect.dump(members)

    def write(self, folder: Path) -> None:
        """Write ``sweep.yaml``; the folder then is not that of a run alone, nor has it a result."""
        folder.mkdir(parents=True, exist_ok=True)
        entries = {name: getattr(self, name) for name in _ENTRIES}
        text = "# Written by fnloop sweep.\n" + config.dump(self.recipe, entries, folder)
        (folder / NAME).write_text(text, encoding="utf-8")
        for other in (config.NAME, TABLE):
            (folder / other).unlink(missing_ok=True)


_ENTRIES = [field.name for field in dataclasses.fields(Sweep) if field.name != "recipe"]
"""What ``sweep.yaml`` says besides."""


def points_of(lists: Lists) -> list[dict[str, Any]]:
    """All combinations of the values of some flags; the last flag varies fastest."""
    return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]


def as_flags(values: Mapping[str, Any]) -> str:
    """Flags as text.

    >>> as_flags({"lr": 0.001, "wd": 0})
    '--lr 0.001 --wd 0'
    """
    return " ".join(f"--{name} {value}" for name, value in values.items())


def sweep_in(folder: Path) -> Sweep | None:
    """The sweep in a folder; None if it has none.

    Raises:
        Problem: Its file is damaged.
    """
    return sweep_of(config.Config(folder / NAME)) if (folder / NAME).is_file() else None


def sweep_of(configuration: config.Config) -> Sweep | None:
    """The sweep that a file tells of; None if it is the configuration of a single run.

    Raises:
        Problem: The file is damaged.
    """
    if configuration.path.name != NAME:
        return None
    entries, recipe = configuration.plain, configuration.recipe()
    missing = [name for name in _ENTRIES if name not in entries]
    if recipe is None or missing:
        raise usage(
            f"{shown(configuration.path)} does not tell of a sweep: it lacks "
            f"{', '.join(missing or ['recipe'])}. fnloop sweep writes this file; if it was edited, "
            "take that back."
        )
    values: dict[str, Any] = {name: entries[name] for name in _ENTRIES}
    return Sweep(recipe, **values)
