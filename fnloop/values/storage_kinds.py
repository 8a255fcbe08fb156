"""Cached shapes, dtypes and placement of storages, to choose kernels by."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

_FACTS = attrgetter("shape", "dtype", "is_cpu", "layout")
_SINGLE, _DOUBLE = frozenset((torch.float32,)), frozenset((torch.float64,))

_SMALL = 1 << 14  # values per tensor


class Kinds:
    """Shapes, dtypes and placement of storages; computed once and shared with derived values.

    Attributes:
        dtypes: The dtypes of the storages.
        values: How many values they have, all together.
        quick: Whether all are contiguous, on the CPU, and of one dtype: float32 or float64.
        small: Whether they are quick, and have so few values that the launch of a kernel takes
            longer than its work.
    """

    __slots__ = ("_facts", "dtypes", "quick", "small", "values")

    @classmethod
    def of(cls, storages: Sequence[Tensor]) -> Kinds:
        """Read them from the storages."""
        self = object.__new__(cls)
        self._facts = list(map(_FACTS, storages))
        self.dtypes = frozenset([facts[1] for facts in self._facts])
        self.quick = (
            self.dtypes in (_SINGLE, _DOUBLE)
            and all([facts[2] and facts[3] is torch.strided for facts in self._facts])
            and all(map(Tensor.is_contiguous, storages))
        )
        self.values = sum(map(Tensor.numel, storages))
        self.small = self.quick and 0 < self.values < _SMALL * len(storages)
        return self

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Kinds) and self.quick == other.quick and self._facts == other._facts
        )

    def __hash__(self) -> int:
        return hash(self.dtypes)
