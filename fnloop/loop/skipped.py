"""Notice that steps are skipped, say why, and end a run of which nothing can come."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop.data.sources import Source
from fnloop.values.cursor import Cursor
from fnloop.values.nonfinite_values import Nonfinite, in_batch
from fnloop.values.state import State

_log = logging.getLogger("fnloop")

FIRST = 50
"""Batches after which the first look is taken; or the first end of an epoch from 20 on."""

AGAIN = 1000
"""Batches from one look to the next, at most: each look waits for the device."""

SETTLED = 30
"""Batches in which the loss scale of ``fl.amp`` finds its range, by skipping steps."""

AT_ONCE = 1 << 26
"""Values of data that are looked through at the end of a run: some tenths of a second."""


class NothingTrainedError(RuntimeError):
    """No step was committed, so that nothing can come of the run."""


class SkipWatch:
    """Looks now and then whether the steps are still committed.

    It warns when none was since the look before, and then looks at each step. After a whole epoch,
    or `AGAIN` batches, without a committed step it raises. A run from initial weights that ends
    earlier, without one committed step, ends with the status "stopped" and the reason. Steps that
    `fl.guard` takes back are given `AGAIN` batches. At the end it tells how many were skipped.

    Attributes:
        due: The count of batches at which to look next.
        untrained: Whether the run has ended, from initial weights, without a committed step.
    """

    def __init__(self, state: State, cursor: Cursor, source: Source) -> None:
        self.due = cursor.count + FIRST
        self._first = self._moved = cursor  # when a step was committed last, or the beginning
        self._step = state.step.clone()
        self._begun = state.calls.clone(), state.step.clone(), _gathering(state)
        self._source = source
        self._warned = False
        self.untrained = False

    def look(self, state: State, metrics: Mapping[str, Any], batch: Any, cursor: Cursor) -> None:
        """Look at a step: from batch `due` on, and at the end of each epoch until one committed.

        Raises:
            NothingTrainedError: No step was committed for a whole epoch, or `AGAIN` batches.
        """
        batches = cursor.count - self._moved.count
        if cursor.count < self.due and (batches < 20 or self._moved != self._first):
            return
        if not torch.equal(state.step, self._step) or not _is_set(metrics, "skipped"):
            self._step = state.step.clone()
            self._moved, self._warned = cursor, False
            self.due = cursor.count + AGAIN
            return
        guarded = _is_set(metrics, "guard")  # which may also take back steps that were committed
        self.due = cursor.count + (FIRST if guarded else 1)
        whole_epoch = cursor.index == 0 and cursor.epoch - self._moved.epoch >= 1
        if (whole_epoch and batches >= 20 and not guarded) or batches >= AGAIN:
            self.untrained = self._is_untrained(state) and not guarded
            raise NothingTrainedError(f"{_told(batches)} {_why(metrics, batch)}")
        if not self._warned and not guarded:
            self._warned = True
            warnings.warn(f"{_told(batches)} {_why(metrics, batch)}", stacklevel=5)

    def outcome(
        self, state: State, metrics: Mapping[str, Any], batch: Any, cursor: Cursor
    ) -> str | None:
        """Why a run from initial weights has failed: no step of it was committed; else None."""
        drawn = cursor.count - self._first.count
        if not drawn or self._moved != self._first or not _is_set(metrics, "skipped"):
            return None
        if not self._is_untrained(state):
            return None
        settling = drawn < SETTLED and any(name.endswith(".scale") for name in metrics)
        if settling or _is_set(metrics, "guard"):
            return None
        if not self._warned:
            self._warned = True
            warnings.warn(f"{_told(drawn)} {_why(metrics, batch)}", stacklevel=5)
        self.untrained = True
        return f"no step was committed: {_cause(metrics, batch)}"

    def _is_untrained(self, state: State) -> bool:
        """Whether no step was committed, neither in this run nor before it."""
        never = self._moved == self._first and not self._step.any()
        return never and torch.equal(state.step, self._step)

    def tell(self, state: State, metrics: Mapping[str, Any]) -> None:
        """Log, at the end of a run, how many steps were skipped, and which examples do it."""
        if self._warned or "skipped" not in metrics or "guard" in metrics:
            return  # what fl.guard takes back, it does so on purpose
        calls = int((state.calls - self._begun[0]).sum())
        steps = int((state.step - self._begun[1]).sum())
        skipped = calls - steps - (_gathering(state) - self._begun[2])
        scaled = any(name.endswith(".scale") for name in metrics)
        if skipped <= (SETTLED + calls // 100 if scaled else 0):
            return
        found = _in_data(self._source)
        why = f"{found}. {_CLEAN}" if found else f"{_CAUSES} {_REPLAY}"
        _log.warning(
            "%d of %d steps were skipped (the metric 'skipped' says which): their gradient was "
            "not finite, or their batch had weight zero. %s",
            skipped,
            calls,
            why,
        )


def _gathering(state: State) -> int:
    """Calls that kept their gradients for a later step, as the stages that count these say."""
    slots = [memory for memory in state.slots.values() if isinstance(memory, dict)]
    name = "gathering_calls"
    return sum([int(memory[name].sum()) for memory in slots if name in memory])


def _is_set(metrics: Mapping[str, Any], name: str) -> bool:
    value = metrics[name].value() if name in metrics else None
    return isinstance(value, Tensor) and value.numel() == 1 and bool(value)


def _told(batches: int) -> str:
    steps = "The step so far was" if batches == 1 else f"The last {batches} steps were all"
    return f"{steps} skipped, and the parameters have not moved:"


def _why(metrics: Mapping[str, Any], batch: Any) -> str:
    return f"{_cause(metrics, batch)}. {_remedy(batch)}"


def _cause(metrics: Mapping[str, Any], batch: Any) -> str:
    """Which leaves of the batch are not finite, and their share."""
    found = ", ".join(_share(leaf) for leaf in in_batch(batch))
    if found:
        return f"in the last batch, {found}"
    if _is_set(metrics, "guard"):
        return "fl.guard takes each step back, because its rule finds it bad"
    return "the gradient is not finite, or the batch has weight zero; the batch is finite"


def _remedy(batch: Any) -> str:
    return _CLEAN if any(in_batch(batch)) else f"{_CAUSES} {_REPLAY}"


_CLEAN = "Clean the data: drop these examples, or fill them in (torch.nan_to_num)."

_CAUSES = (
    "The usual causes: a learning rate that is too high, a logarithm or a division of 0, "
    "fp16 values that overflow."
)

_REPLAY = "fl.replay(step, state, batch) shows where it begins."


def _in_data(source: Source) -> str:
    """Which examples are not finite, if the data is at hand and small enough to look through."""
    columns: Mapping[str, Tensor] = getattr(source, "columns", {})
    if sum(column.numel() for column in columns.values()) > AT_ONCE:
        return ""
    leaves = (
        Nonfinite.of("batch", f"data/{path}" if path else "data", leaf)
        for path, leaf in columns.items()
    )
    found = [leaf for leaf in leaves if leaf]
    rows = sorted({row for leaf in found for row in leaf.rows})
    which = f"{', '.join(map(str, rows[:8]))}{', ...' if len(rows) >= 8 else ''}"
    return f"{', '.join(map(_share, found))} (rows {which})" if found else ""


def _share(leaf: Nonfinite) -> str:
    return f"{100 * leaf.count / leaf.size:.3g} % of {leaf.path} is not finite"
