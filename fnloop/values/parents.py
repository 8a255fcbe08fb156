"""``Parents``: a metric that tells which member each member of a population comes from."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fnloop.trees.nodes import tree
from fnloop.values.metrics import Metric


@tree
class Parents(Metric):
    """Whose state each member has taken; merged, who its ancestor was at the beginning.

    Args:
        parents: int64[n]; a member that has kept its state has its own number.

    >>> first, second = Parents(torch.tensor([0, 0, 2])), Parents(torch.tensor([1, 1, 2]))
    >>> first.merge(second).value().tolist()  # member 0 took from 1, which had taken from 0
    [0, 0, 2]
    """

    reduction: ClassVar[str] = "same"
    parents: Any

    def merge(self, other: Self) -> Self:
        return type(self)(self.parents[other.parents])

    def empty(self) -> Self:
        return type(self)(torch.arange(len(self.parents), device=self.parents.device))

    def value(self) -> Tensor:
        return self.parents
