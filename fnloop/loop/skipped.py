"""Notice that a run's steps are all skipped, say why, and end it where nothing can come of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.trees.paths import tree_items
from fnloop.values.cursor import Cursor
from fnloop.values.state import State

FIRST = 50
"""Batches after which the first look is taken; or the first end of an epoch from 20 on."""

AGAIN = 1000
"""Batches from one look to the next, at most: each look waits for the device."""

SETTLED = 30
"""Batches in which the loss scale of ``fl.amp`` finds its range, by skipping steps."""


class NothingTrainedError(RuntimeError):
    """No step was committed, so that nothing can come of the run."""


class SkipWatch:
    """Looks now and then whether the steps are still committed.

    It warns when none was since the look before, and then looks at each step. After a whole epoch,
    or `AGAIN` batches, without a committed step it raises. A run from initial weights that ends
    earlier, without one committed step, ends with the status "stopped" and the reason. Steps that
    `fl.guard` takes back are given `AGAIN` batches.
    """

    def __init__(self, state: State, cursor: Cursor) -> None:
        self.due = cursor.count + FIRST
        self._first = self._moved = cursor  # when a step was committed last, or the beginning
        self._step = state.step.clone()
        self._warned = False

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
            raise NothingTrainedError(f"{_told(batches)} {_why(metrics, batch)}")
        if not self._warned and not guarded:
            self._warned = True
            warnings.warn(f"{_told(batches)} {_why(metrics, batch)}", stacklevel=4)

    def outcome(
        self, state: State, metrics: Mapping[str, Any], batch: Any, cursor: Cursor
    ) -> str | None:
        """Why a run from initial weights has failed: no step of it was committed; else None."""
        drawn = cursor.count - self._first.count
        if not drawn or self._moved != self._first or not _is_set(metrics, "skipped"):
            return None
        if self._step.any() or not torch.equal(state.step, self._step):
            return None
        settling = drawn < SETTLED and any(name.endswith(".scale") for name in metrics)
        if settling or _is_set(metrics, "guard"):
            return None
        if not self._warned:
            warnings.warn(f"{_told(drawn)} {_why(metrics, batch)}", stacklevel=4)
        return f"no step was committed: {_cause(metrics, batch)}"


def tell_of_skips(rows: Sequence[Mapping[str, Any]]) -> None:
    """Warn if more than a tenth of a run's steps were skipped.

    Args:
        rows: Those of a `fl.History`.
    """
    # What fl.guard takes back, it does so on purpose.
    skipped = sum(row.get("skipped", 0) for row in rows if not row.get("guard"))
    batches = rows[-1]["step"] if rows else 0
    if skipped < 10 or skipped <= batches / 10:
        return
    warnings.warn(
        f"{skipped:.0f} of {batches} steps were skipped (when, is in history['skipped']): their "
        "gradient was not finite, or their batch had the weight zero. The usual causes are values "
        "in the data that are not finite, and a learning rate that is too high.",
        stacklevel=3,
    )


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
    found = [
        f"{100 * (1 - share):.3g} % of {name} is {_kinds(leaf)}"
        for name, leaf in _leaves(batch)
        if (share := float(leaf.isfinite().double().mean())) < 1
    ]
    if not found and _is_set(metrics, "guard"):
        return "fl.guard takes each step back, because its rule finds it bad"
    if not found:
        return "the gradient is not finite, or the batch has weight zero; the batch is finite"
    return f"in the last batch, {', '.join(found)}"


def _remedy(batch: Any) -> str:
    if all(bool(leaf.isfinite().all()) for _, leaf in _leaves(batch)):
        return (
            "The usual causes: a learning rate that is too high, a logarithm or a division of 0, "
            "fp16 values that overflow. fl.replay(step, state, batch) shows where it begins."
        )
    return "Clean the data: drop these examples, or fill them in (torch.nan_to_num)."


def _kinds(leaf: Tensor) -> str:
    found = [("nan", leaf.isnan()), ("inf", leaf.isinf())]
    return " or ".join(name for name, there in found if bool(there.any()))


def _leaves(batch: Any) -> list[tuple[str, Tensor]]:
    items = ((f"batch/{path}" if path else "batch", leaf) for path, leaf in tree_items(batch))
    return [
        (name, leaf)
        for name, leaf in items
        if isinstance(leaf, Tensor)
        and leaf.layout is torch.strided
        and (leaf.is_floating_point() or leaf.is_complex())
        and leaf.numel()
    ]
