"""Gradients as a weighted monoid."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from fnloop._torch import foreach
from fnloop.trees.nodes import tree
from fnloop.values.merging import merge
from fnloop.values.packed import groups_of, joined, parted


@tree
class Grads:
    """Gradients of a weighted sum of losses.

    Sums, not means: merging two is adding them, whatever the weights, and the weight divides once,
    in `fl.update`.

    Attributes:
        total: Gradient of the weighted sum of the losses, by parameter name; float32 where the
            parameter is float16 or bfloat16.
        weight: float64[]; the sum of the weights.
        finite: bool[]; whether every value in `total` is finite, as far as a stage has looked.
        metrics: What the loss reported.
    """

    total: dict[str, Tensor]
    weight: Tensor
    finite: Tensor
    metrics: dict[str, Any]

    def merge(self, other: Self) -> Self:
        """The gradients of both parts."""
        groups = groups_of(self.total)
        ours, theirs = joined(self.total, groups), joined(other.total, groups)
        total = foreach.add(list(ours.values()), [theirs[name] for name in ours])
        return type(self)(
            parted(dict(zip(ours, total, strict=True)), groups, self.total),
            self.weight + other.weight,
            self.finite & other.finite,
            merge((self.metrics, other.metrics)),
        )
