"""Which examples of a batch make its loss or its gradient non-finite."""

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
"""Parts of a batch that are tried at most."""


class Suspect(NamedTuple):
    """An example that alone, as a batch of one, gives a loss or a gradient that is not finite.

    Attributes:
        index: Of the example in the whole batch.
        loss: Its loss; None if it could not be evaluated alone (batch statistics need two).
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    loss: float | None


def suspects(call: Call) -> tuple[list[Suspect], str]:
    """Halve a batch again and again, and follow the halves that are bad.

    Args:
        call: Of an `fl.grad` stage, whose loss or gradient was not finite.

    Returns:
        The examples, and what should be said about them: why there is none, or why not all.
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
    """Whether examples ``start:stop`` are bad, None if that cannot be told; and their loss."""
    part = tree_map(functools.partial(_cut, start=start, stop=stop), call.batch)
    try:
        _, grads = call.stage(call.state, part)
    except Exception:  # batch statistics of one example, a loss that wants the whole batch, ...
        return None, None
    loss = numbers({"loss": grads.metrics["loss"]})["loss"] if "loss" in grads.metrics else None
    return is_bad(grads), loss


def _cut(leaf: Any, start: int, stop: int) -> Any:
    return leaf[start:stop] if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim else leaf
