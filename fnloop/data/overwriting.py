"""Whether data writes a batch into the memory of an earlier one, which has not been used yet."""

from __future__ import annotations

import itertools
import operator
from collections import deque
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

    def overwritten(self, by: HeldBatch | None = None) -> str | None:
        """The path of a leaf whose values have changed since; None if there is none.

        Args:
            by: A later batch, if only leaves count in whose memory a leaf of that one lies.
        """
        now = list(map(_BYTES, self._some))
        if now == self._seen:
            return None
        changed = list(map(operator.ne, now, self._seen))
        if by is not None:
            pairs = zip(changed, self._some, strict=True)
            changed = [differs and by._lies_in(some) for differs, some in pairs]
        paths = [path for path, _ in tree_items(self._batch)]
        return next(itertools.compress(paths, changed), None)

    def _lies_in(self, memory: Any) -> bool:
        return any([np.may_share_memory(memory, some) for some in self._some])


class HeldBatches:
    """The last batches that were drawn from a source, while further ones are drawn.

    Args:
        source: The source.
        most: How many of them are held.
        whole: What they are numbered in.
        handed_out: Whether somebody may use them already, who may change them in place. They count
            as overwritten then if a further batch lies in their memory.
    """

    def __init__(
        self, source: Any, most: int, whole: str = "run", handed_out: bool = False
    ) -> None:
        self._kind: str = getattr(source, "kind", "data")
        self._whole = whole
        self._handed_out = handed_out
        self._held = deque[tuple[int, HeldBatch]](maxlen=most)

    def add(self, number: int, batch: Any) -> None:
        """Add the batch that has been drawn as the one of this number.

        Raises:
            ValueError: One that is held has been overwritten.
        """
        new = HeldBatch(batch)
        for earlier, held in self._held:
            path = held.overwritten(new if self._handed_out else None)
            if path is not None:
                raise _error(self._kind, f"{number} of the {self._whole}", earlier, path)
        self._held.append((number, new))

    def clear(self) -> None:
        """Hold none of them any longer."""
        self._held.clear()


_BYTES = np.ndarray.tobytes
_NOTHING = np.zeros(0, np.uint8)


def _some_of(leaf: Any) -> Any:
    """Some of its bytes, as a view; none if it is no tensor on the CPU or array in one piece."""
    try:
        if type(leaf) is Tensor and leaf.is_cpu and leaf.is_contiguous() and not leaf.requires_grad:
            array = leaf.view(-1).view(torch.uint8).numpy()
        elif type(leaf) is np.ndarray and leaf.flags.c_contiguous:
            array = leaf.reshape(-1).view(np.uint8)
        else:
            return _NOTHING
    except (RuntimeError, TypeError):  # a conjugate, sparse rows, or an array of Python objects
        return _NOTHING
    return array[:: array.size // _POINTS | 1]  # odd, so that not only the lowest bytes are seen


def _error(kind: str, later: str, earlier: int, path: str) -> ValueError:
    where = f", at {path!r}" if path else ""
    return ValueError(
        f"The {kind} has written batch {later} over batch {earlier}{where}, which has not been "
        "used yet: batches are read ahead. Usual cause: a buffer that is filled anew for each "
        "batch. Give a copy of it: yield buffer.clone(), or buffer.copy() of an array."
    )
