"""Whether a function writes to a batch that lies in the memory of the user's data."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from fnloop.trees.nodes import tree_leaves
from fnloop.trees.paths import tree_items


class Lent:
    """A batch while a function has it, if a write to it would change the data for good.

    Writes are counted by torch, which shows neither when they came nor what was written. So the
    user may write to the data whenever no function has a batch.

    Args:
        source: What it was read from.
        batch: The batch.

    >>> import torch, fnloop as fl
    >>> data = fl.Batches(torch.ones(4), 2, shuffle=False)
    >>> batch = next(iter(data))
    >>> lent = Lent(data, batch)
    >>> _ = batch.mul_(2)
    >>> lent.check("The step")
    Traceback (most recent call last):
    ...
    RuntimeError: The step has written to its batch in place, and so to your data: ...
    """

    __slots__ = ("_batch", "_before", "_tensors")

    def __init__(self, source: Any, batch: Any) -> None:
        self._batch = batch
        self._tensors = _counted(batch) if getattr(source, "lent", False) else []
        self._before = list(map(_FACTS, self._tensors))

    def check(self, who: str) -> None:
        """Raise a RuntimeError if the batch has been written to since, by `who`."""
        if list(map(_FACTS, self._tensors)) == self._before:
            return
        # `squeeze_` counts as a write, of all views of the memory, and is none.
        facts = list(zip(self._tensors, self._before, strict=True))
        reshaped = {_memory(x) for x, (_, shape) in facts if x._is_view() and x.shape != shape}
        for tensor, (version, _) in facts:
            if tensor._version != version and _memory(tensor) not in reshaped:
                raise _error(self._batch, tensor, who)


_FACTS = operator.attrgetter("_version", "shape")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _counted(batch: Any) -> list[Tensor]:
    """The tensors of a batch whose writes are counted."""
    leaves = tree_leaves(batch)
    return [x for x in leaves if isinstance(x, Tensor) and not x.is_inference()]


def _error(batch: Any, written: Tensor, who: str) -> RuntimeError:
    path = next((path for path, leaf in tree_items(batch) if leaf is written), "")
    where = f", at {path!r}," if path else ""
    return RuntimeError(
        f"{who} has written to its batch{where} in place, and so to your data: batches that are "
        "not shuffled are parts of your tensors, not copies, and what was written stays for the "
        "next epoch. Usual cause: the loss or the model changes its input (x /= 255, x.mul_(2)). "
        "Make a new tensor (x = x / 255), or a copy before (x = x.clone())."
    )
