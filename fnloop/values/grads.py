"""Mean gradients with their weight; they merge by a weighted mean (a monoid)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor

from fnloop.trees.nodes import tree
from fnloop.values.looking import look
from fnloop.values.merging import merge
from fnloop.values.operators import NoOperatorsOfGrads
from fnloop.values.tensors import Tensors


@tree
class Grads(NoOperatorsOfGrads):
    """Mean gradients and their total weight.

    Merging takes the weighted mean, over micro-batches, ranks or examples.

    Attributes:
        mean: Gradient of the weighted mean loss, by parameter name; float32 if the parameter is
            float16 or bfloat16. Parameters that the loss does not use are absent.
        weight: Sum of the weights, such as the number of examples: int64[] or float64[].
        finite: bool[]; False if a stage found a value in `mean` that is not finite. True also
            means that no stage has checked yet.
        metrics: The metrics that the loss reported.

    >>> a = Grads(Tensors({"w": torch.tensor(1.0)}), torch.tensor(1), torch.tensor(True), {})
    >>> b = a.replace(mean=Tensors({"w": torch.tensor(5.0)}), weight=torch.tensor(3))
    >>> a.merge(b).mean["w"], a.merge(b).weight
    (tensor(4.), tensor(4))
    """

    mean: Tensors
    weight: Tensor
    finite: Tensor
    metrics: dict[str, Any]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; `mean` may be given as a dict.

        Raises:
            TypeError: There is no such field.
        """
        new = object.__new__(type(self))
        own = new.__dict__
        own.update(self.__dict__)
        own.update(changes)
        if type(own["mean"]) is dict:
            own["mean"] = Tensors(own["mean"])
        if len(own) > len(self.__dict__):
            unknown = sorted(changes.keys() - self.__dict__.keys())
            raise TypeError(
                f"Grads has no field {', '.join(unknown)}; it has: {', '.join(self.__dict__)}."
            )
        return new

    def emptied(self) -> Self:
        """With the weight, metrics and flag of no examples; `mean` stays."""
        return self.replace(
            weight=torch.zeros_like(self.weight),
            finite=torch.ones_like(self.finite),
            metrics={name: metric.empty() for name, metric in self.metrics.items()},
        )

    def merge(self, other: Self) -> Self:
        """Merge with the gradients of another part.

        A part of weight zero changes no value, even if its gradients are not finite. Parameters
        that only such a part reached have a gradient of zero.
        """
        return self._merged(other, False)[0]

    @classmethod
    def fold(cls, parts: Iterable[Self]) -> Self:
        """Merge all parts in order. Each part is freed before the next is computed.

        Raises:
            ValueError: `parts` is empty.
        """
        merged: Self | None = None
        owned = False  # whether merging computed `merged.mean`, so that it can be overwritten
        for part in parts:
            merged, owned = (part, False) if merged is None else merged._merged(part, owned)
            del part
        if merged is None:
            raise ValueError("There are no gradients to fold: got no part.")
        return merged

    def _merged(self, other: Self, owned: bool) -> tuple[Self, bool]:
        """Merge, overwriting `self.mean` if it is owned; and whether the new mean is owned."""
        total = self.weight + other.weight
        share = look(other.weight.double() / torch.where(total > 0, total, torch.ones_like(total)))
        ours, theirs = _same_names(self.mean, other.mean)
        owned = owned and ours is self.mean
        if isinstance(share, Tensor):
            # Select the parts of weight zero away: zero times inf or nan would be nan.
            mean = ours.lerp(theirs, share).where(share > 0, ours).where(share < 1, theirs)
            finite = (self.finite | (share == 1)) & (other.finite | (share == 0))
        elif share in (0.0, 1.0):
            mean, finite = (theirs, other.finite) if share else (ours, self.finite)
            owned = owned and not share
        else:
            mean = ours.lerped(theirs, share, owned)
            finite, owned = self.finite & other.finite, True
        metrics = merge((self.metrics, other.metrics))
        return type(self)(mean, total, finite, metrics), owned


def _same_names(a: Tensors, b: Tensors) -> tuple[Tensors, Tensors]:
    """Give both the union of their names; a missing gradient is zero."""
    if a.names == b.names:
        return a, b
    only_a = [name for name in a if name not in b]
    only_b = [name for name in b if name not in a]
    left = a.beside(b.select(only_b).zeros())
    return left, a.select(only_a).zeros().beside(b).select(left)
