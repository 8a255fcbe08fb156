"""Batches that are cut from the examples of several, which one call gathers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from torch import Tensor

_AT_ONCE = 1 << 18  # bytes, at most
_FEW = 4  # batches at once, at least: larger ones take longer to copy than to call for
_ALIGNED = 64  # bytes, as memory of its own is
_WRITES = attrgetter("_version")


def at_once(columns: Sequence[Tensor], size: int) -> int:
    """How many batches of `size` examples to gather at once; 1 where that is not worth it.

    Each begins where memory of its own would. Else products of matrices might round it in another
    way after a resume, which begins to gather at another batch.
    """
    if not all(map(_tells_writes, columns)):
        return 1
    sizes = [size * (column.numel() // len(column)) * column.element_size() for column in columns]
    many = _AT_ONCE // max(1, sum(sizes))
    return many if many >= _FEW and not any(n % _ALIGNED for n in sizes) else 1


def gathered(
    columns: Sequence[Tensor], indices: Tensor, size: int, many: int
) -> Iterator[tuple[Tensor, ...]]:
    """The batches at `indices`, of `size` examples; so many are gathered at once.

    What is written to the columns in the meantime is in the next batch.
    """
    start = 0
    while start < len(indices):
        part = indices[start : start + many * size]
        versions = list(map(_WRITES, columns))
        # Unlike those of `split`, these are no views: autograd does not take them for one tensor.
        cut = [column.index_select(0, part).unsafe_split(size) for column in columns]
        for batch in zip(*cut, strict=True):
            if list(map(_WRITES, columns)) != versions:
                break
            start += size
            yield batch


def _tells_writes(column: Tensor) -> bool:
    """Whether every write to it is counted: nobody else, such as NumPy, has its memory."""
    if type(column) is not Tensor or not column.is_cpu:
        return False
    own = column.untyped_storage().resizable() and not column.is_shared()
    return own and not (column.requires_grad or column.is_inference())
