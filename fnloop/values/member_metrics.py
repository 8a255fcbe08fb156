"""Metrics of a population, of which each member has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from fnloop.trees.nodes import tree, tree_leaves, tree_map
from fnloop.values.metrics import Mean, Metric
from fnloop.values.stacked import abreast, members_of, side_by_side
from fnloop.values.state import State


@tree
class OfMembers(Metric):
    """A metric for each member: merged by member, and with a value for each.

    Attributes:
        stacked: The metric, with a leading dimension for the members on all of its tensors.
    """

    reduction: ClassVar[str] = "merge"
    stacks: ClassVar[bool] = True

    stacked: Any

    def merge(self, other: OfMembers) -> OfMembers:
        pairs = zip(self.members(), other.members(), strict=True)
        return OfMembers(abreast([own.merge(theirs) for own, theirs in pairs]))

    def value(self) -> Any:
        return abreast([own.value() for own in self.members()])

    def empty(self) -> OfMembers:
        return OfMembers(abreast([own.empty() for own in self.members()]))

    def members(self) -> list[Any]:
        """The metric of each member."""
        n = len(tree_leaves(self.stacked)[0])
        return [tree_map(itemgetter(i), self.stacked) for i in range(n)]

    def __repr__(self) -> str:
        return super().__repr__().replace("OfMembers", type(self.stacked).__name__, 1)


def of_members(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics whose tensors have a leading dimension for members, as metrics of a population.

    >>> import torch
    >>> from fnloop.metrics import confusion
    >>> found = [confusion(torch.eye(2), torch.tensor(labels)) for labels in ([0, 1], [0, 0])]
    >>> both = tree_map(lambda *each: torch.stack(each), *found)
    >>> of_members({"digits": both})["digits"].value()["accuracy"]
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    return {name: m if _stacks(m) else OfMembers(m) for name, m in metrics.items()}


def beside(found: Sequence[dict[str, Any]], state: State) -> dict[str, Any]:
    """The metrics of all members of a population; of a single run, its own.

    Args:
        found: The metrics of each of `each_member`.
        state: Of the population, or of the single run.
    """
    metrics = side_by_side(found, state)
    return metrics if members_of(state) is None else of_members(metrics)


def _stacks(metric: Metric) -> bool:
    """Whether the metric does with vectors what it does with numbers, element by element."""
    if isinstance(metric, Mean) and _ndim(metric.total) != _ndim(metric.weight):
        return False  # one weight for a vector: with members, it would be broadcast
    return vars(type(metric)).get("stacks", False)


def _ndim(number: Any) -> int:
    return number.ndim if isinstance(number, Tensor) else 0
