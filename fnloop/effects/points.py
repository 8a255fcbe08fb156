"""A run's metrics as points: merged over a stretch of batches, never lost, cheap to collect."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from fnloop.effects import window
from fnloop.values.cursor import Cursor, epoch_of
from fnloop.values.merging import merge_all
from fnloop.values.metrics import Metrics, Stop
from fnloop.values.state import State


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
    metric with a prefix (``val/loss``) that not every step reports: validation results are
    seen at the very step they belong to.

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
        self._held: dict[str, Any] = {}  # what waited when the run was stopped
        self._always: set[str] | None = None  # names that every step has reported
        self._cursor = [0, 0, 0]

    def open(self, batches: int | None) -> None:
        """Settle the rhythm, now that the number of batches in an epoch is known (or None)."""
        if not self._chosen:
            self.every = 50 if batches is None or batches >= 100 else 1 << 62

    def add(self, state: State, metrics: Metrics) -> Point | None:
        """Take in one step; return the point that it completes, if it completes one."""
        if self._held:
            self._parts = [*window.from_json(self._held, metrics)]
            self._held = {}
        self._parts.append(metrics)
        self._cursor = cursor = state.cursor.tolist()
        different: bool = metrics.keys() != self._always  # pyright: ignore
        surprising = different and self._surprising(metrics)
        if surprising or not cursor[1] or not cursor[2] % self.every:
            return self.rest()
        if len(self._parts) >= self._fold_after:
            self._parts = [merge_all(self._parts)]
        return None

    def peek(self) -> Point | None:
        """The point that would end here; the metrics are kept for the next one."""
        if not self._parts:
            return None
        cursor = Cursor(*self._cursor)
        return Point(epoch_of(cursor), cursor.count, merge_all(self._parts))

    def rest(self) -> Point | None:
        """The point that ends here, if there was a batch since the last one."""
        point = self.peek()
        self._parts = []
        return point

    def goes_on(self, state: State) -> bool:
        """Whether what waits here ends where the run that begins with `state` begins."""
        return bool(self._held) or self._cursor == state.cursor.tolist()

    def memo(self) -> dict[str, Any]:
        """What waits for the end of its point, as JSON values."""
        return self._held or window.to_json(self._parts)

    def recall(self, memo: dict[str, Any]) -> None:
        """Go on in the middle of a point."""
        self._parts, self._held = [], memo

    def _surprising(self, metrics: Metrics) -> bool:
        if self._always is None:
            # The first step here may be one of validation: a resumed run can begin anywhere.
            self._always = {name for name in metrics if subset_of(name)[1] == "train"}
        self._always.intersection_update(metrics)
        return any("/" in name and name not in self._always for name in metrics)


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
