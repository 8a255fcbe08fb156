"""Find the examples of a batch that make its loss or its gradient non-finite."""

from __future__ import annotations

from typing import NamedTuple

from fnloop.replays.watch import Call, is_bad
from fnloop.values.merging import numbers
from fnloop.values.rows import UnclearRows, cut, rows

LIMIT = 128
"""Maximum number of parts of a batch to try."""


class Suspect(NamedTuple):
    """An example that as a batch of one gives a non-finite loss or gradient.

    Attributes:
        index: Index of the example in the whole batch.
        loss: Its loss; None if it could not be evaluated alone (batch statistics need two).
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    loss: float | None


def suspects(call: Call) -> tuple[list[Suspect], str]:
    """Bisect a batch: halve it, and halve the bad parts again.

    Args:
        call: A call of an `fl.grad` stage with a non-finite loss or gradient.

    Returns:
        The examples; and a note if there are none, or if some may be missing.
    """
    try:
        size, why = rows(call.batch), "it has no tensor"
    except UnclearRows as unclear:
        size, why = None, str(unclear)
    if call.offset is None:
        why = "the sizes of the micro-batches before it are unknown"
    if size is None or call.offset is None:
        return [], f"The batch cannot be cut into examples: {why}."
    found, tried, sure = list[Suspect](), 0, False
    waiting = [(0, 1)] if size == 1 else [(size // 2, size), (0, size // 2)]
    while waiting and tried < LIMIT:
        start, stop = waiting.pop()
        bad, loss = _try(call, start, stop, size)
        tried, sure = tried + 1, sure or bad is True
        if bad is False:
            continue
        if stop - start == 1:
            found.append(Suspect(call.offset + start, loss))
        else:
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]
    if found and not sure:
        return [], "Which example it is cannot be told: the loss fails on parts of the batch."
    if waiting:
        return found, f"There may be more: the search ended after {LIMIT} parts of the batch."
    return found, "" if found else "No example does it alone: it takes several of them."


def _try(call: Call, start: int, stop: int, size: int) -> tuple[bool | None, float | None]:
    """Whether examples ``start:stop`` are bad (None if they cannot be run), and their loss."""
    try:
        _, grads = call.stage(call.state, cut(call.batch, start, stop, size))
    except Exception:  # batch statistics of one example, a loss that wants the whole batch, ...
        return None, None
    loss = numbers({"loss": grads.metrics["loss"]})["loss"] if "loss" in grads.metrics else None
    return is_bad(grads), loss
