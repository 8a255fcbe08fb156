"""A run's metrics as points: merged over a stretch of batches, never lost, cheap to collect."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.values import Cursor, State
from fnloop.values.metrics import Last, Mean, Metric, Metrics, Stop, Sum


class Point(NamedTuple):
    """The merge of the metrics of all batches since the point before.

    Attributes:
        epoch: The epoch of the last batch, counted from 1.
        step: Batches drawn up to and with the last one.
        metrics: Merged metrics, on whatever device they were.
    """

    epoch: int
    step: int
    metrics: dict[str, Any]


class Points:
    """Cuts a run into points.

    A point ends at every `every`-th batch, at the end of each epoch, and at a step that reports a
    metric with a prefix (``val/loss``) that is not reported at every step: validation results
    are seen at the very step they belong to.

    Args:
        every: Batches from one point to the next; None for 50, or for one point an epoch where
            an epoch has fewer than 100 (points of unequal length make a ragged curve).
        fold_after: Batches after which metrics are folded, to bound memory.
    """

    def __init__(self, every: int | None, fold_after: int = 256) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every={every}: expected a number of batches, 1 or more.")
        self.every = every or 50
        self._chosen = every is not None
        self._fold_after = fold_after
        self._parts: list[Metrics] = []
        self._always: set[str] = set()
        self._begun = False
        self._cursor = [0, 0, 0]

    def open(self, batches: int | None) -> None:
        """Settle the rhythm, now that the number of batches in an epoch is known (or None)."""
        if not self._chosen:
            self.every = 50 if batches is None or batches >= 100 else 1 << 62

    def add(self, state: State, metrics: Metrics) -> Point | None:
        """Take in one step; return the point that it completes, if it completes one."""
        self._parts.append(metrics)
        self._cursor = cursor = state.cursor.tolist()
        surprising = (
            metrics.keys() != self._always  # pyright: ignore[reportUnnecessaryComparison]
            and self._surprising(metrics)
        )
        if surprising or not cursor[1] or not cursor[2] % self.every:
            return self.rest()
        if len(self._parts) >= self._fold_after:
            self._parts = [fold(self._parts)]
        return None

    def peek(self) -> Point | None:
        """The point that would end here; the metrics are kept for the next one."""
        if not self._parts:
            return None
        epoch, index, count = self._cursor
        return Point(epoch + bool(index), count, fold(self._parts))

    def rest(self) -> Point | None:
        """The point that ends here, if there was a batch since the last one."""
        point = self.peek()
        self._parts = []
        return point

    def _surprising(self, metrics: Metrics) -> bool:
        if not self._begun:
            self._begun, self._always = True, set(metrics)
        self._always.intersection_update(metrics)
        return any("/" in name and name not in self._always for name in metrics)


def epoch_of(cursor: Cursor) -> int:
    """The epoch of the last batch drawn, counted from 1.

    >>> epoch_of(Cursor(0, 32, 1)), epoch_of(Cursor(1, 0, 10)), epoch_of(Cursor(1, 32, 11))
    (1, 1, 2)
    """
    return cursor.epoch + bool(cursor.index)


def fold(parts: Sequence[Metrics]) -> dict[str, Any]:
    """`fl.merge`, in bulk: a few operations for many steps, where merging pairs takes many.

    >>> float(fold([{"loss": Mean(4.0, 2)}, {"loss": Mean(1.0, 3)}])["loss"])
    1.0
    """
    columns: dict[str, list[Any]] = {}
    for part in parts:
        for name, metric in part.items():
            if name in columns:
                columns[name].append(metric)
            else:
                columns[name] = [metric]
    return {name: _fold(column) for name, column in columns.items()}


def _fold(column: list[Any]) -> Any:
    kind = type(column[0])
    if len(column) == 1 or kind is Last or kind is Stop:
        return column[-1]
    if kind is Mean:
        total = _total([metric.total for metric in column])
        weight = _total([metric.weight for metric in column])
        if total is not None and weight is not None:
            return Mean(total, weight)
    if kind is Sum:
        total = _total([metric.total for metric in column])
        if total is not None:
            return Sum(total)
    return functools.reduce(lambda a, b: a.merge(b), column)


def _total(values: list[Any]) -> Any:
    """The sum in double precision, or None where the values are not alike."""
    first = values[0]
    try:
        if not isinstance(first, Tensor):
            return None if any(isinstance(value, Tensor) for value in values) else sum(values)
        if first.ndim == 0 and first.device.type == "cpu":
            return sum([value.item() for value in values])
        stacked = torch.stack(values)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return stacked.sum(0, dtype=torch.float64 if stacked.is_floating_point() else None)


def numbers_of(many: Iterable[Metrics]) -> list[dict[str, float]]:
    """Each as floats, like `fl.numbers`, waiting for the device once for all of them.

    What is no single number is left out.

    >>> numbers_of([{"loss": Mean(4.0, 2)}, {"loss": Mean(torch.tensor(9.0), 3), "lr": Last(0.1)}])
    [{'loss': 2.0}, {'loss': 3.0, 'lr': 0.1}]
    """
    rows: list[dict[str, float]] = []
    waiting: dict[Any, list[tuple[dict[str, float], str, Tensor]]] = {}
    for metrics in many:
        row: dict[str, float] = {}
        for name, value in _entries(metrics):
            if isinstance(value, Tensor):
                row[name] = 0.0  # keeps its place in the order
                waiting.setdefault((value.device, value.dtype), []).append((row, name, value))
            else:
                row[name] = value
        rows.append(row)
    for group in waiting.values():
        values = torch.stack([value.detach().reshape(()) for _, _, value in group]).tolist()
        for (row, name, _), value in zip(group, values, strict=True):
            row[name] = float(value)
    return rows


def _entries(metrics: Metrics) -> Iterable[tuple[str, Any]]:
    for name, metric in metrics.items():
        if isinstance(metric, Stop):
            continue
        value = metric.value() if isinstance(metric, Metric) else metric
        entries: Mapping[str, Any] = value if isinstance(value, Mapping) else {"": value}
        for key, entry in entries.items():
            label = f"{name}/{key}" if key else name
            if isinstance(entry, Tensor) and entry.numel() == 1:
                yield label, entry
            elif not isinstance(entry, Tensor | str):
                with contextlib.suppress(TypeError, ValueError):
                    yield label, float(entry)


def reason_in(metrics: Metrics, status: str) -> str:
    """Why a run with these last metrics ended so; empty where none of them asked for it."""
    if status not in ("stopped", "interrupted"):
        return ""
    return next((m.reason for m in metrics.values() if isinstance(m, Stop) and m), "")


_SUBSET = re.compile(r"(train|valid|validation|val|eval|test)([-_.\d][^/]*)?")


def subset_of(name: str) -> tuple[str, str]:
    """A metric's name without the prefix that says on which data, and that prefix.

    >>> subset_of("val/loss"), subset_of("loss"), subset_of("accuracy/cat")
    (('loss', 'val'), ('loss', 'train'), ('accuracy/cat', 'train'))
    """
    prefix, _, rest = name.partition("/")
    return (rest, prefix) if rest and _SUBSET.fullmatch(prefix) else (name, "train")
