"""Whether data writes a batch into the memory of the one before, which has not been used yet."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.trees.nodes import tree_leaves
from fnloop.trees.paths import tree_items

_POINTS = 16


class HeldBatch:
    """A batch that is kept while the next one is drawn; some of its values are looked at again.

    >>> buffer = torch.zeros(2, 3)
    >>> held = HeldBatch({"x": buffer})
    >>> held.overwritten()
    >>> _ = buffer.fill_(1)
    >>> held.overwritten()
    'x'
    """

    __slots__ = ("_batch", "_seen", "_some")

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._some = list(map(_some_of, tree_leaves(batch)))  # views, which change with the leaves
        self._seen = list(map(_BYTES, self._some))

    def overwritten(self) -> str | None:
        """The path of a leaf whose values have changed since; None if there is none."""
        now = list(map(_BYTES, self._some))
        if now == self._seen:
            return None
        changed = map(operator.ne, now, self._seen)
        paths = [path for path, _ in tree_items(self._batch)]
        return next(itertools.compress(paths, changed), "")


_BYTES = np.ndarray.tobytes
_NOTHING = np.zeros(0, np.uint8)


def _some_of(leaf: Any) -> Any:
    """Some of its bytes, as a view; none if it is no tensor on the CPU or array in one piece."""
    if type(leaf) is Tensor and leaf.is_cpu and leaf.is_contiguous() and not leaf.requires_grad:
        try:
            array = leaf.view(-1).view(torch.uint8).numpy()
        except RuntimeError:  # a conjugate, which is computed when it is read
            return _NOTHING
    elif type(leaf) is np.ndarray and leaf.flags.c_contiguous and leaf.dtype != object:
        array = leaf.reshape(-1).view(np.uint8)
    else:
        return _NOTHING
    return array[:: array.size // _POINTS | 1]  # odd, so that not only the lowest bytes are seen


def overwritten_error(kind: str, epoch: int, index: int, path: str) -> ValueError:
    """The error for data that does so."""
    where = f", at {path!r}" if path else ""
    return ValueError(
        f"The {kind} has written batch {index + 1} of epoch {epoch} over batch {index}{where}, "
        "which has not been used yet: one batch is read ahead. Usual cause: a buffer that is "
        "filled anew for each batch. Give a copy of it: yield buffer.clone(), or buffer.copy() of "
        "an array."
    )
