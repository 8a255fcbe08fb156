"""``validate``: evaluation as a callback."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from fnloop.data.bundle import Data, sets_of
from fnloop.data.iterables import is_once
from fnloop.data.limiting import SMOKE, limit
from fnloop.data.readers import check_data, check_part
from fnloop.data.sources import as_source
from fnloop.distributed.mesh import Mesh
from fnloop.effects.activity import Activity
from fnloop.loop.evaluate import evaluate_metrics, statistics_data
from fnloop.loop.every import Every
from fnloop.stages.callback import Callback
from fnloop.stages.functions import as_loss
from fnloop.trees.nodes import static, tree
from fnloop.trees.show import short
from fnloop.values.cursor import Cursor
from fnloop.values.state import State


class Same:
    """Wraps a value so that it compares by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@tree
class validate(Callback):
    """Evaluate the model and add the results to the metrics, as ``"val/loss"`` and so on.

    By itself it runs after every step, so wrap it: ``fl.every(500, fl.validate(loss, data))``, or
    ``fl.every(1, fl.validate(loss, data), unit="epoch")``.

    Args:
        fn: As in `fl.evaluate`.
        data: As in `fl.evaluate`; one epoch each time. Of `fl.Data`, ``validate``. Several sets by
            name, ``{"day": a, "night": b}``, add ``"val/day/loss"`` and so on.
        name: Prefix of the metrics.
        params: A slot to take the parameters from, such as ``"ema"``; default the live ones.
        statistics: As in `fl.evaluate`: one epoch of it each time. Of the ``train`` of `fl.Data`
            that is given as `data`, too.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state, metrics = step(step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2))
    >>> state, metrics = validate(loss, fl.Batches(torch.ones(4, 2), 2))(state, metrics)
    >>> "val/loss" in metrics
    True
    """

    label: ClassVar[str] = "validate"
    reads: ClassVar[bool] = False
    only_evaluates: ClassVar[bool] = True
    fn: Any
    data: Any = static()  # in a `Same`
    name: str = "val"
    params: str | None = None
    statistics: Any = static(default=None)  # in a `Same`
    mesh: Mesh = static(default=Mesh())

    def __post_init__(self) -> None:
        object.__setattr__(self, "fn", as_loss(self.fn, "fn(model, batch)"))
        if isinstance(self.data, Same):  # made again
            return
        given, statistics = self.data, self.statistics
        if given is None:
            raise TypeError("validate(data=...) takes the data to evaluate on, got None.")
        check_part(given, "validate(data=...)")
        check_data(statistics, "validate(statistics=...)")
        if isinstance(given, Data) and self.params and statistics is None:
            statistics = given  # its training data, which may have to be opened first
        if isinstance(given, Data) and given.is_open:
            given = given.only("validate", "validate")
        object.__setattr__(self, "data", Same(given))
        object.__setattr__(self, "statistics", Same(statistics))
        if not isinstance(given, Data):
            _ = self._sets  # an error comes early

    @property
    def slot(self) -> None:
        return None

    def over(self, mesh: Mesh) -> Self:
        return dataclasses.replace(self, mesh=mesh)

    def smoke(self) -> Self:
        data = {name: limit(part, SMOKE) for name, part in self._sets.items()}
        given: Any = self.statistics.value
        statistics = Same(None if given is None else limit(given, SMOKE))
        few: Any = data.get("", data)
        return dataclasses.replace(self, data=Same(few), statistics=statistics)

    def adds(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Any]:
        known: Any = None if self._statistics is None else "live"  # it is no time to compute them
        added = self._prefixed(
            evaluate_metrics(self.fn, state, self._part, self.params, 1, statistics=known)
        )
        for name in added:
            if name in metrics:
                raise ValueError(
                    f"{self.describe()} adds the metric {name!r}, which is there already. Usual "
                    'cause: two validations of one name; give one fl.validate(..., name="...").'
                )
        return added

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
        with Activity(self.name, self._batches) as activity:
            results = evaluate_metrics(
                self.fn,
                state,
                self._part,
                self.params,
                None,
                activity.advance,
                self._statistics,
                self.mesh,
            )
        return state, {**x, **self._prefixed(results)}

    @functools.cached_property
    def _batches(self) -> int | None:
        """Batches in an epoch of the data; None if unknown."""
        counts = [as_source(part).batches for part in self._sets.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @functools.cached_property
    def _part(self) -> Any:
        """The data; of `fl.Data`, its part, which may have to be opened first."""
        data = self.data.value
        return data.only("validate", "validate") if isinstance(data, Data) else data

    @functools.cached_property
    def _statistics(self) -> Any:
        """Data to compute statistics from; None if there is none."""
        return statistics_data(self.statistics.value)

    @functools.cached_property
    def _sets(self) -> dict[str, Any]:
        """The sets by name; the name of a single one is empty."""
        sets = sets_of(self._part) or {"": self._part}
        for part in sets.values():
            if is_once(part):
                raise TypeError(
                    f"validate needs data that can be read repeatedly; the {type(part).__name__} "
                    "is an iterator, which is exhausted after one validation. Pass a list, "
                    "fl.Batches, a Dataset or a DataLoader."
                )
        return sets

    def _prefixed(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.name}/{name}": metric for name, metric in metrics.items()}

    def describe(self) -> str:
        return f"validate({short(self.fn)}, name={self.name!r})"


def not_due(stages: Sequence[Callback], state: State) -> list[Callback]:
    """What evaluates every so often, and did not at `state`."""
    waiting = [s for s in stages if isinstance(s, Every) and s.only_evaluates]
    cursor = Cursor.of(state.cursor)
    found: list[Any] = [every.inner for every in waiting if not every.is_due(cursor)]
    return [inner for inner in found if not isinstance(inner, Every)]


def first_validation(stages: Sequence[Callback], state: State) -> dict[str, Any]:
    """The metrics of the validations that come before the first step, too."""
    added: dict[str, Any] = {}
    for stage in stages:
        if isinstance(stage, Every) and stage.first:
            _, added = stage.inner(state, added)
    return added


def last_validation(
    stages: Sequence[Callback], state: State, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """The metrics that `stages`, from `not_due`, add to those of a run's last step.

    No other callback is told of them: early stopping counts what comes when it is due, so that a
    resumed run goes on as if it had never been stopped.
    """
    added: dict[str, Any] = {}
    for stage in stages:
        _, seen = stage(state, metrics)
        added.update({name: value for name, value in seen.items() if name not in metrics})
    return added
