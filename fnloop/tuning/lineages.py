"""``lineage``: who took the state of whom in population-based training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fnloop.names.keywords import explained
from fnloop.trees.show import short


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What `fl.tuning.lineage` has read.

    Attributes:
        checks: At how many batches drawn members were compared.
        parents: Of each check, the member that each had its state from.
        curves: Metrics that have a value for each member: batches drawn, and values by member.
        swept: Of an `fl.sweep`, what each member began with, by hyperparameter.
    """

    checks: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]
    curves: Mapping[str, tuple[list[int], list[list[float]]]]
    swept: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def founders(self) -> list[int]:
        """Of each member, who it was at the beginning."""
        return [self.ancestors(i)[0] for i in range(len(self.parents[0]))]

    def ancestors(self, member: int) -> list[int]:
        """Who member `member` was: before each of `checks`, and after the last.

        >>> Lineage((10, 20), ((0, 0, 2), (1, 1, 2)), {}).ancestors(0)
        [0, 1, 0]
        """
        found = [range(len(self.parents[0]))[member]]
        for parents in reversed(self.parents):
            found.append(parents[found[-1]])
        return found[::-1]

    def schedule(self, name: str, member: int) -> tuple[list[int], list[float]]:
        """A metric of a member and of those it comes from: batches drawn, and values.

        Of a hyperparameter, this is the schedule that has led to the member.

        Args:
            name: Such as ``"adamw.lr"``.
            member: As it is at the end.
        """
        steps, values = self.curve(name)
        whose, found = self.ancestors(member), list[float]()
        for step, row in zip(steps, values, strict=True):
            passed = sum(check < step for check in self.checks)
            found.append(row[whose[passed]])
        return steps, found

    def curve(self, name: str) -> tuple[list[int], list[list[float]]]:
        """A metric of all members: batches drawn, and a list of values for each.

        Raises:
            KeyError: There is none of this name with a value for each member.
        """
        if name not in self.curves:
            raise KeyError(
                f"No metric {name!r} has a value for each member; there are: "
                f"{', '.join(self.curves) or 'none'}."
            )
        return self.curves[name]

    def table(self) -> str:
        """A line for each check: who took the state of whom."""
        lines = [f"{'batches':>8}  taken"]
        for check, parents in zip(self.checks, self.parents, strict=True):
            taken = [f"{i} from {p}" for i, p in enumerate(parents) if p != i]
            lines.append(f"{check:>8}  {', '.join(taken) or 'nothing'}")
        return "\n".join(lines)

    def plot(
        self,
        names: Iterable[str] | str,
        member: int | None = None,
        path: str | Path | None = None,
    ) -> Any:
        """Draw metrics of all members over the run, and who took the state of whom.

        A line branches off where a state was taken, and ends with a dot where one was dropped. Its
        color is that of the member whose state it was at the beginning.

        Args:
            names: A panel for each, such as ``["val/accuracy", "adamw.lr"]``.
            member: Whose way from the beginning is drawn bold; default none.
            path: Image file to write (.png, .pdf, .svg); default none.

        Returns:
            A matplotlib ``Figure``.

        Raises:
            ImportError: Where matplotlib is missing.
            KeyError: There is no such metric.
        """
        from fnloop.tuning.lineage_plot import draw_lineage

        return draw_lineage(self, [names] if isinstance(names, str) else [*names], member, path)

    def __repr__(self) -> str:
        taken = sum(p != i for parents in self.parents for i, p in enumerate(parents))
        left = len({*self.founders})
        return (
            f"lineage: {taken} states taken at {len(self.checks)} checks; "
            f"{left} of {len(self.founders)} founders left"
        )


@explained
def lineage(history: Any, name: str = "lineage") -> Lineage:
    """Read who took the state of whom, and what members used, from the history of a run.

    A checkpoint keeps the history, and so the lineage of a resumed run is whole. Checks that share
    a row of the history, as where members are compared at every batch, are read as one.

    Args:
        history: Of a run with `fl.population`.
        name: The name of that callback.

    Raises:
        KeyError: The history has no lineage.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> many = fl.sweep(step, {"sgd.lr": [0.001, 0.01, 0.1, 0.2]})
    >>> callbacks = [fl.every(5, fl.population("loss", fraction=0.25))]
    >>> states = many.init(lambda: torch.nn.Linear(2, 1))
    >>> states, history = fl.fit(many, states, [torch.ones(4, 2)], steps=10, callbacks=callbacks)
    >>> found = lineage(history)
    >>> print(found.table())
     batches  taken
           5  0 from 3
          10  1 from 0
    >>> found.founders, [round(rate, 3) for rate in found.schedule("sgd.lr", 1)[1]][3:7]
    ([3, 3, 2, 3], [0.2, 0.2, 0.16, 0.16])
    """
    if not isinstance(history, Iterable) or isinstance(history, (str, type)):
        raise TypeError(f"lineage takes the fl.History of a run, got {short(history)}.")
    rows = list(history)
    found = _by_member(rows)
    metric = f"{name}/parent"
    if metric not in found:
        raise KeyError(
            f"This history has no {metric!r}. It comes from fl.population(..., name={name!r}) "
            "among the callbacks; without a check, as where its metric was never reported, there "
            "is none."
        )
    checks, parents = found.pop(metric)
    whole = tuple([tuple(map(int, row)) for row in parents])
    return Lineage(tuple(checks), whole, found, getattr(history, "swept", {}))


def _by_member(rows: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[list[float]]]]:
    """The metrics ``name[0]``, ``name[1]``, ... of rows: steps, and values by member."""
    found: dict[str, tuple[list[int], list[list[float]]]] = {}
    for row in rows:
        own: dict[str, list[float]] = {}
        for name, value in row.items():
            base, bracket, _ = name.rpartition("[")
            if bracket:
                own.setdefault(base, []).append(value)
        for base, values in own.items():
            steps, table = found.setdefault(base, ([], []))
            steps.append(row["step"])
            table.append(values)
    return found
