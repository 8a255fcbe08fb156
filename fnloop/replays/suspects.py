"""Find the examples of a batch that make its loss or its gradient non-finite."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fnloop.replays.watch import Call, is_bad
from fnloop.stages.loss_result import leading_sizes
from fnloop.trees.nodes import tree_map
from fnloop.values.merging import numbers

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
    sizes = leading_sizes(call.batch)
    if len(sizes) != 1 or call.offset is None:
        return [], "The batch cannot be cut into examples: its tensors' leading dimensions differ."
    size, found, tried, sure = next(iter(sizes)), list[Suspect](), 0, False
    waiting = [(0, 1)] if size == 1 else [(size // 2, size), (0, size // 2)]
    while waiting and tried < LIMIT:
        start, stop = waiting.pop()
        bad, loss = _try(call, start, stop)
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


def _try(call: Call, start: int, stop: int) -> tuple[bool | None, float | None]:
    """Whether examples ``start:stop`` are bad (None if they cannot be run), and their loss."""
    part = tree_map(functools.partial(_cut, start=start, stop=stop), call.batch)
    try:
        _, grads = call.stage(call.state, part)
    except Exception:  # batch statistics of one example, a loss that wants the whole batch, ...
        return None, None
    loss = numbers({"loss": grads.metrics["loss"]})["loss"] if "loss" in grads.metrics else None
    return is_bad(grads), loss


def _cut(leaf: Any, start: int, stop: int) -> Any:
    return leaf[start:stop] if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim else leaf
