"""A run's metrics as points, each merged over several batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from fnloop.effects import window
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor, epoch_of
from fnloop.values.merging import merge_all
from fnloop.values.metrics import Last, Metrics, Stop
from fnloop.values.state import State

OWN = ("epoch", "step")  # the columns that every point has besides the metrics


def check_names(names: Iterable[str], who: str) -> None:
    """Check that no metric has the name of a column of the run's own.

    Raises:
        ValueError: One has.
    """
    for name in OWN:
        if name in names:
            raise ValueError(
                f"{who} reports a metric called {name!r}, and that is a column of the run's own in "
                f"history and trackers. Give it another name, such as 'model_{name}'."
            )


class Point(NamedTuple):
    """The merge of the metrics of all batches since the point before.

    Attributes:
        epoch: The epoch of the last batch, counted from 1.
        step: Batches drawn, including the last one.
        metrics: Merged metrics, on their device.
    """

    epoch: int
    step: int
    metrics: dict[str, Any]


class Points:
    """Cuts a run into points.

    A point ends at every `every`-th batch, at the end of each epoch, and where a callback reports a
    metric with a prefix (``val/loss``) that it does not report at every step, so that validation
    results appear at the step they belong to.

    Args:
        every: Batches from one point to the next; None for 50, or for one point an epoch if an
            epoch has fewer than 100 (points of unequal length make a ragged curve).
        fold_after: Batches after which metrics are merged, to bound memory.
    """

    def __init__(self, every: int | None, fold_after: int = 256) -> None:
        self.every = 50 if every is None else as_count(every, "every=", 1)
        self._chosen = every is not None
        self._fold_after = fold_after
        self._parts: list[Metrics] = []
        self._held: dict[str, Any] = {}  # of an unfinished point, from a checkpoint: JSON by name
        self._always: set[str] | None = None  # names that every step has reported
        self._new: set[str] | None = set()  # new ones of a resumed run; None before its first step
        self._of_step: Collection[str] = ()  # names that the step has reported itself
        self._cursor = [0, 0, 0]
        self._measured: Callable[[], Mapping[str, float]] | None = None

    def open(
        self,
        batches: int | None,
        measured: Callable[[], Mapping[str, float]] | None = None,
        reported: Collection[str] = (),
    ) -> None:
        """Choose the length of a point from the batches in an epoch (None if unknown).

        Args:
            batches: How many.
            measured: Tells what has been measured beside the metrics, which a point has, too.
            reported: The names that the step has reported itself, so far.
        """
        self._measured, self._of_step = measured, reported
        if not self._chosen:
            self.every = 50 if batches is None or batches >= 100 else 1 << 62

    def close(self) -> None:
        """Nothing is measured any more."""
        self._measured = None

    def add(self, state: State, metrics: Metrics) -> Point | None:
        """Add one step; return the point that it completes, or None."""
        if self._held:
            seen = {name: self._held.pop(name) for name in [*self._held] if name in metrics}
            self._parts = [*window.from_json(seen, metrics), *self._parts]
        self._cursor = cursor = state.cursor.tolist()
        self._parts.append(metrics)
        different: bool = metrics.keys() != self._always  # pyright: ignore
        if different:
            check_names(metrics, "A callback")
            surprising = self._surprising(metrics)
        else:
            surprising, self._new = False, set()
        if surprising or not cursor[1] or not cursor[2] % self.every:
            return self.rest()
        if len(self._parts) >= self._fold_after:
            self._parts = [merge_all(self._parts)]
        return None

    def peek(self, last: Metrics | None = None) -> Point | None:
        """The point that would end here; the metrics are kept for the next one.

        Args:
            last: Metrics of the last step that came after it, to be added.
        """
        if not self._parts and not last:
            return None
        cursor = Cursor(*self._cursor)
        parts = [*window.from_json_alone(self._held), *self._parts] if self._held else self._parts
        merged = merge_all(parts) if parts else {}
        measured = self._measured() if self._measured is not None else {}
        beside = {name: Last(v) for name, v in measured.items() if name not in merged}
        return Point(epoch_of(cursor), cursor.count, {**merged, **beside, **(last or {})})

    def rest(self) -> Point | None:
        """The point that ends here, if there was a batch since the last one."""
        point = self.peek()
        self._parts, self._held = [], {}
        return point

    def goes_on(self, state: State) -> bool:
        """Whether a run that starts at `state` continues the unfinished point."""
        return bool(self._held) or self._cursor == state.cursor.tolist()

    def memo(self) -> dict[str, Any]:
        """The metrics of the unfinished point, as JSON values."""
        return {**self._held, **window.to_json(self._parts)}

    @property
    def always(self) -> list[str] | None:
        """The names that every step has reported, for a memo; None if there was no step."""
        return None if self._always is None else sorted(self._always)

    def recall(self, memo: dict[str, Any], always: Iterable[str] | None = None) -> None:
        """Continue an unfinished point of a run whose steps have reported the names `always`."""
        self._parts, self._held = [], {**memo}
        if always is not None:
            self._always, self._new = set(always), None

    def _surprising(self, metrics: Metrics) -> bool:
        if self._always is None:
            self._always = _of_training(metrics)
        elif self._new is None:  # a part of a sequence that has rested, or another pipeline?
            self._new = _of_training(metrics) - self._always
        elif self._new:  # in two steps in a row: another pipeline
            self._always |= self._new.intersection(metrics)
            self._new = set()
        self._always.intersection_update(metrics)
        always, of_step = self._always, self._of_step  # of a step, at its parts' turns only
        return any("/" in name and not (name in always or name in of_step) for name in metrics)


def _of_training(metrics: Metrics) -> set[str]:
    # The first step of a resumed run may be one with validation.
    return {name for name in metrics if subset_of(name)[1] == "train"}


def reason_in(metrics: Metrics, status: str) -> str:
    """The reason of the metric that asked for a stop; empty if none did."""
    if status not in ("stopped", "interrupted"):
        return ""
    return next((m.reason for m in metrics.values() if isinstance(m, Stop) and m), "")


_SUBSET = re.compile(r"(train|valid|validation|val|eval|test)([-_.\d][^/]*)?")


def subset_of(name: str) -> tuple[str, str]:
    """A metric's name without the prefix for its data, and that prefix.

    >>> subset_of("val/loss"), subset_of("loss"), subset_of("accuracy/cat")
    (('loss', 'val'), ('loss', 'train'), ('accuracy/cat', 'train'))
    """
    prefix, _, rest = name.partition("/")
    return (rest, prefix) if rest and _SUBSET.fullmatch(prefix) else (name, "train")
