"""Where the next unread batch is."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor


class Cursor(NamedTuple):
    """`State.cursor` as Python numbers.

    The end of an epoch has one form: ``(epoch + 1, 0, count)``.

    Attributes:
        epoch: Epochs finished.
        index: Examples read in this epoch (batches, where the source cannot count examples).
        count: Batches ever drawn; ``steps=``, `fl.every` and checkpoint names count it.

    >>> Cursor.of(Cursor(1, 64, 10).tensor())
    Cursor(epoch=1, index=64, count=10)
    """

    epoch: int = 0
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
    count: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, tensor: Tensor) -> Cursor:
        """Read a state's cursor."""
        return cls(*tensor.tolist())

    def tensor(self) -> Tensor:
        """int64[3], on the CPU."""
        # a third of the time of torch.tensor
        return torch.frombuffer(bytearray(_PACK(*self)), dtype=torch.int64)


_PACK = struct.Struct("=3q").pack


def epoch_of(cursor: Cursor) -> int:
    """The epoch of the last batch drawn, counted from 1.

    >>> epoch_of(Cursor(0, 32, 1)), epoch_of(Cursor(1, 0, 10)), epoch_of(Cursor(1, 32, 11))
    (1, 1, 2)
    """
    return cursor.epoch + bool(cursor.index)


def is_due(n: int, unit: str, cursor: Cursor) -> bool:
    """Whether a rhythm of `n` fires after the batch before `cursor`.

    >>> within, at_its_end = Cursor(0, 64, 2), Cursor(1, 0, 3)
    >>> is_due(2, "step", within), is_due(1, "epoch", within), is_due(1, "epoch", at_its_end)
    (True, False, True)
    """
    if unit == "step":
        return cursor.count % n == 0
    return cursor.index == 0 and cursor.count > 0 and cursor.epoch % n == 0
