"""``every``: call a callback or an effect every n batches, epochs or seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import torch
from torch import Tensor

from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Effect, Run
from fnloop.names.keywords import explained
from fnloop.stages.base import Stage
from fnloop.stages.callback import Callback
from fnloop.stages.functions import check_function
from fnloop.stages.lift import stage
from fnloop.trees.nodes import static, tree, tree_leaves, tree_map
from fnloop.values.cursor import Cursor
from fnloop.values.merging import merge_all
from fnloop.values.metrics import Metric, Metrics, Stop, check_metrics
from fnloop.values.rhythm import Pace, Rhythm, Unit
from fnloop.values.state import State


@tree
class Every(Callback):
    """The callback that `every` makes; its memory is the merge of the metrics since it last ran."""

    label: ClassVar[str] = "every"
    n: Any = static()
    inner: Any
    unit: str = "step"
    name: str = ""
    first: bool = False
    rhythm: Rhythm | None = static(default=None)  # that of the run

    @property
    def slot(self) -> str | None:
        return self.name if self.inner.reads else None

    def init_state(self, state: State, metrics: Metrics) -> dict[str, Any]:
        return {name: _start(m) for name, m in metrics.items() if _is_merged(m)}

    def init(self, state: State, metrics: Metrics) -> State:  # type: ignore[override]
        return super().init(self.inner.init(state, metrics), metrics)

    @property
    def only_evaluates(self) -> bool:  # type: ignore[override]  # pyright: ignore
        return self.inner.only_evaluates

    def over(self, mesh: Mesh) -> Self:
        return dataclasses.replace(self, inner=self.inner.over(mesh))

    def along(self, pace: Pace) -> Self:
        rhythm = Rhythm(self.n, self.unit, self.describe()).begun(pace)
        return dataclasses.replace(self, inner=self.inner.along(pace), rhythm=rhythm)

    def smoke(self) -> Self:
        return dataclasses.replace(self, n=1, unit="epoch", inner=self.inner.smoke())

    @property
    def rhythms(self) -> tuple[Rhythm, ...]:
        own = [] if self.rhythm is None else [self.rhythm]
        return (*own, *self.inner.rhythms)

    def needs(self) -> tuple[str, ...]:
        return self.inner.needs()

    def adds(self, state: State, metrics: Metrics) -> Mapping[str, Any] | None:
        return self.inner.adds(state, metrics)

    def stopped(self, state: State) -> str | None:
        return self.inner.stopped(state)

    def __call__(self, state: State, x: Metrics) -> tuple[State, Metrics]:
        due = self.is_due(Cursor.of(state.cursor))
        memory = state[self.name] if self.inner.reads else {}
        if not memory:
            return self.inner(state, x) if due else (state, x)
        # Entries that are no `Metric` were loaded from a run with a metric that this one lacks.
        own = {n: m for n, m in memory.items() if isinstance(m, Metric)}
        gone = {n: m for n, m in memory.items() if n not in own}
        window = {
            name: _as_tensors(_add(merged, x[name])) if name in x else merged
            for name, merged in own.items()
        }
        if not due:
            return state.put(self.name, {**window, **gone}), x
        given = {**x, **{name: _shown(name, m, x) for name, m in window.items()}}
        given = {name: m for name, m in given.items() if m is not None}
        state, seen = self.inner(state, given)
        added = {name: m for name, m in seen.items() if name not in given or m is not given[name]}
        check_metrics(added, f"The callback {self.inner.describe()}")
        empty = {name: _as_tensors(merged.empty()) for name, merged in window.items()}
        return state.put(self.name, {**empty, **gone}), {**x, **added}

    def is_due(self, cursor: Cursor) -> bool:
        rhythm = self.rhythm
        if rhythm is None:  # outside of a run
            rhythm = Rhythm(self.n, self.unit, self.describe()).begun(Pace())
        return rhythm.is_due(cursor)

    def describe(self) -> str:
        unit = "" if self.unit == "step" else f", unit={self.unit!r}"
        return f"every({self.n}, {self.inner.describe()}{unit})"


class EveryEffect(Effect):
    """The effect that `every` makes; it sees the merge of the metrics since it last ran."""

    def __init__(self, n: int | float, inner: Effect, unit: str) -> None:
        self.inner, self._rhythm = inner, Rhythm(n, unit, f"every({n}, {inner.name})")
        self.name, self.ranks = inner.name, inner.ranks
        self._parts: list[Metrics] = []
        self._run: Run | None = None

    @property
    def closing(self) -> float:  # type: ignore[override]  # pyright: ignore
        return self.inner.closing

    @property
    def sees_batches(self) -> bool:  # type: ignore[override]  # pyright: ignore
        return self.inner.sees_batches

    def drawn(self, cursor: Cursor, batch: Any) -> None:
        self.inner.drawn(cursor, batch)

    @property
    def asked(self) -> bool:  # type: ignore[override]  # pyright: ignore
        return self.inner.asked

    @asked.setter
    def asked(self, asked: bool) -> None:  # pyright: ignore
        self.inner.asked = asked

    @property
    def gathers(self) -> bool:  # type: ignore[override]  # pyright: ignore
        return self.inner.gathers

    @property
    def saves_to(self) -> Path | None:  # type: ignore[override]  # pyright: ignore
        return self.inner.saves_to

    @property
    def saves_last(self) -> bool:  # type: ignore[override]  # pyright: ignore
        return self.inner.saves_last

    def check_run(self, run: Run) -> None:
        self.inner.check_run(run)

    def needs(self) -> tuple[str, ...]:
        return self.inner.needs()

    def open(self, run: Run) -> None:
        self._parts, self._run = [], run
        self._rhythm.begun(run.pace)
        self.inner.open(run)

    def before(self, metrics: Metrics) -> None:
        self.inner.before(metrics)

    @property
    def rhythms(self) -> tuple[Rhythm, ...]:  # type: ignore[override]  # pyright: ignore
        return (self._rhythm, *self.inner.rhythms)

    def smoke(self, folder: Path) -> Effect | None:
        inner = self.inner.smoke(folder)
        return None if inner is None else EveryEffect(1, inner, "epoch")

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return self._rhythm.is_due(cursor)

    def __call__(self, state: State, metrics: Metrics) -> None:
        self._parts.append(metrics)
        if self._rhythm.is_due(Cursor.of(state.cursor)):
            merged, self._parts = merge_all(self._parts), []
            self.inner(state, merged)
        elif len(self._parts) >= 256:  # to bound memory
            self._parts = [merge_all(self._parts)]

    def close(self, status: str) -> None:
        parts, self._parts = self._parts, []
        try:
            if parts and self._run is not None:  # metrics since it last ran
                self.inner(self._run.state, merge_all(parts))
        finally:
            self.inner.close(status)

    def release(self) -> None:
        self.inner.release()

    def memo(self) -> Any:
        return self.inner.memo()

    def recall(self, memo: Any) -> None:
        self.inner.recall(memo)

    def note_damaged(self, paths: Collection[Path]) -> None:
        self.inner.note_damaged(paths)


@overload
def every(
    n: int | float, callback: Effect, unit: Unit = "step", name: str | None = None
) -> EveryEffect: ...
@overload
def every(
    n: int | float,
    callback: Callback | Callable[[State, Any], Any],
    unit: Unit = "step",
    name: str | None = None,
    first: bool = False,
) -> Every: ...
@explained
def every(
    n: int | float,
    callback: Effect | Callback | Callable[[State, Any], Any],
    unit: Unit = "step",
    name: str | None = None,
    first: bool = False,
) -> Any:
    """Call a callback every `n` batches, epochs or seconds.

    It is given the merge of the metrics since it last ran. (A callback cannot read a metric that
    grows when it is merged, such as an AUROC that keeps all scores, because the merge is kept in
    the state; an effect can.) Batches are counted by the state's
    cursor, so a resumed run keeps the schedule.

    Args:
        n: How often. Of epochs it may be a fraction, such as 0.25 or 1.5: the callback then comes
            with the batch that completes it, and the data must know its length.
        callback: A callback, an effect, or a bare function ``(state, metrics) -> (state,
            metrics)``.
        unit: ``"step"`` (batches drawn), ``"epoch"`` or ``"second"``. The clock is looked at before
            each step, by all ranks together, and starts anew when a run is resumed.
        name: Name of its slot; default ``"every."`` and the callback's name.
        first: Whether a validation also comes before the first step of a new run. `fl.History` and
            trackers have its metrics at step 0; other callbacks are not told of them.

    >>> import torch, fnloop as fl
    >>> seen = []
    >>> note = fl.effect(lambda state, metrics: seen.append(float(metrics["loss"].weight)))
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data = fl.Batches(torch.ones(8, 2), 2)
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> for state, metrics in fl.run(step, state, data, steps=4, callbacks=[every(2, note)]):
    ...     pass
    >>> seen
    [4.0, 4.0]
    """
    if isinstance(n, (Stage, Effect)) or callable(n):
        raise TypeError(
            "every takes the number first: fl.every(500, fl.validate(loss, data)), or "
            'fl.every(1, fl.validate(loss, data), unit="epoch").'
        )
    rhythm = Rhythm(n, unit, "every(n, ...)")  # checks them
    n = n if isinstance(n, float) else rhythm.n
    if isinstance(callback, Effect):
        if first:
            raise _not_first(callback.name)
        return EveryEffect(n, callback, unit)
    if isinstance(callback, Stage) and not isinstance(callback, Callback):
        raise TypeError(
            f"every calls a callback; {callback.describe()} is a stage of the pipeline."
        )
    if not isinstance(callback, Callback):
        check_function(callback, "every", "(state, metrics) -> (state, metrics), or a callback")
    inner = callback if isinstance(callback, Callback) else stage(callback, "callback")
    label = getattr(inner, "name", None) or inner.describe()
    if name is None and " at 0x" in label:
        raise ValueError(
            f"every names its slot after the callback, and {label} has no name that stays the same "
            'in the next process: every(..., name="...").'
        )
    if first and not inner.only_evaluates:
        raise _not_first(inner.describe())
    return Every(n, inner, unit, name or f"every.{label}", first)


def _not_first(who: str) -> TypeError:
    return TypeError(
        f"every(..., first=True) is for a validation, and {who} is none: before the first step "
        "there are no metrics of a step. To look at the first state, do so before the run."
    )


@tree
class Reported(Metric):
    """Stands for a metric that grows when it is merged, and counts its reports."""

    reduction: ClassVar[str] = "same"
    times: Any

    def merge(self, other: Any) -> Reported:
        return Reported(self.times + 1)


@tree
class Grown(Metric):
    """What a callback is given in place of a merge that cannot be kept; reading it is an error."""

    name: str

    def value(self) -> Any:
        raise TypeError(
            f"The metric {self.name!r} grows when it is merged, so the merge since this callback "
            "last ran cannot be kept in the state, whose shapes stay. Read it in an effect, which "
            "gets the merge: fl.every(n, fl.effect(f)); or have it computed when the callback "
            "runs: fl.every(n, fl.validate(fn, data)) before it, with the same n."
        )


def _is_merged(metric: Any) -> bool:
    """Whether there is anything to merge: a stop is a request, and text has no tensor."""
    if not isinstance(metric, Metric) or isinstance(metric, Stop):
        return False
    return all([isinstance(leaf, (Tensor, float, int)) for leaf in tree_leaves(metric)])


def _start(metric: Metric) -> Metric:
    """The memory of a metric before its first report."""
    grows = _shapes(metric) != _shapes(metric.merge(metric))
    return (
        Reported(torch.zeros((), dtype=torch.int64, device="cpu"))
        if grows
        else _as_tensors(metric.empty())
    )


def _add(merged: Metric, metric: Any) -> Metric:
    if isinstance(merged, Reported) or type(merged) is type(metric):
        return merged.merge(metric)
    raise TypeError(
        f"A metric was reported as {type(merged).__name__} and then as {type(metric).__name__}, "
        "which cannot be merged. Report it as one kind, or under two names."
    )


def _shown(name: str, merged: Metric, x: Metrics) -> Metric | None:
    """What the callback is given: the merge; or the only report; or what says why there is none."""
    if not isinstance(merged, Reported):
        return merged
    times = int(merged.times)
    if times == 1 and name in x:
        return x[name]
    return Grown(name) if times else None


def _shapes(metric: Metric) -> list[Any]:
    return [getattr(leaf, "shape", ()) for leaf in tree_leaves(metric)]


def _as_tensors(metric: Any) -> Any:
    """The metric with tensors as leaves, floats in float64."""
    # This runs for every metric at every step: walk the tree only if it is nested.
    leaves = [(name, getattr(metric, name)) for name in type(metric).__tree_children__]
    if not all([isinstance(leaf, (Tensor, float, int)) for _, leaf in leaves]):
        return tree_map(_as_tensor, metric)
    changes = {name: _as_tensor(leaf) for name, leaf in leaves if not _is_kept(leaf)}
    if not changes:
        return metric
    new = object.__new__(type(metric))
    new.__dict__.update(vars(metric))
    new.__dict__.update(changes)
    return new


def _as_tensor(leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        return torch.scalar_tensor(float(leaf), dtype=torch.float64, device="cpu")
    return leaf.to(torch.float64) if leaf.is_floating_point() else leaf


def _is_kept(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype in _KEPT


_KEPT = frozenset((torch.float64, torch.int64, torch.bool))
