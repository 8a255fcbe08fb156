"""Where the next unread batch is."""

from __future__ import annotations

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
        return torch.tensor(self, dtype=torch.int64)
