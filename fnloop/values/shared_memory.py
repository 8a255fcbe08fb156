"""Tensors of a module that share memory: which are views of which."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fnloop._torch.read_only import memory_of


class View(NamedTuple):
    """A buffer that is a view of another one.

    Attributes:
        name: Its name.
        base: Name of the buffer whose memory it shares.
        cut: Shape, strides and offset of the view in the base.
    """

    name: str
    base: str
    cut: tuple[tuple[int, ...], tuple[int, ...], int]

    def of(self, base: Tensor) -> Tensor:
        """The view of `base`, a contiguous tensor."""
        return base.as_strided(*self.cut)


def views(
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    others: Sequence[tuple[str, Tensor]],
) -> list[View]:
    """The buffers that are views of another buffer.

    Args:
        params: Parameters by name.
        buffers: Buffers by name.
        others: Other tensors that the module keeps, with their paths.

    Raises:
        ValueError: Other tensors of the state share memory.

    >>> table = torch.zeros(4)
    >>> views({}, {"table": table, "first": table[:2]}, [])
    [View(name='first', base='table', cut=((2,), (1,), 0))]
    """
    groups: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in [*params.items(), *buffers.items(), *others]:
        address, _ = memory_of(tensor)
        if address is not None and tensor.numel() and not tensor.is_meta:
            groups.setdefault(address, []).append((name, tensor))
    found: list[View] = []
    for group in groups.values():
        shared = [(a, b) for a, b in itertools.combinations(group, 2) if _overlap(a[1], b[1])]
        shared = [(a, b) for a, b in shared if {a[0], b[0]} & (params.keys() | buffers.keys())]
        if not shared:
            continue
        names = {name for pair in shared for name, _ in pair}
        base = max((item for item in group if item[0] in names), key=lambda item: item[1].numel())
        for name, tensor in group:
            if name in names and name != base[0]:
                if not {name, base[0]} <= buffers.keys() or not _covers(base[1], tensor):
                    raise _error(*shared[0])
                offset = int(tensor.storage_offset()) - int(base[1].storage_offset())
                found.append(View(name, base[0], (tuple(tensor.shape), tensor.stride(), offset)))
    return found


def _error(a: tuple[str, Tensor], b: tuple[str, Tensor]) -> ValueError:
    return ValueError(
        f"The model's tensors {a[0]!r} and {b[0]!r} share memory, as views of one another. In a "
        "state each parameter and buffer has memory of its own, so that a change of one would not "
        "reach the other. To tie two parameters, use one nn.Parameter under both names; to use a "
        "part of a tensor, cut it out in forward; else clone it."
    )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have an element in common."""
    (start, stop), (first, last) = _extent(a), _extent(b)
    if stop <= first or last <= start:
        return False
    if a.dtype.itemsize != b.dtype.itemsize:
        return True
    low = min(a.storage_offset(), b.storage_offset())
    size = (max(stop, last) - min(start, first)) // a.element_size()
    marks = torch.zeros(size, dtype=torch.bool)
    marks.as_strided(a.shape, a.stride(), a.storage_offset() - low).fill_(True)
    return bool(marks.as_strided(b.shape, b.stride(), b.storage_offset() - low).any())


def _covers(base: Tensor, view: Tensor) -> bool:
    """Whether a view lies within a contiguous base of the same dtype."""
    (start, stop), (first, last) = _extent(base), _extent(view)
    return base.dtype == view.dtype and base.is_contiguous() and start <= first and last <= stop


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and the one after the last."""
    length = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size, start = tensor.element_size(), int(tensor.storage_offset())
    return start * size, (start + length) * size
