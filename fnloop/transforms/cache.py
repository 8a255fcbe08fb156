"""What a compiled step caches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import optree
from torch import Tensor

from fnloop.stages.base import Stage
from fnloop.transforms.plan import Plans
from fnloop.transforms.program import Program
from fnloop.transforms.varying import Family


class Cache:
    """The plans of a step's states, and its programs; and the step itself, as leaves.

    Attributes:
        step: The step's leaves and their structure.
        tensors: The leaves that are tensors.
        plans: See `Plans`.
        programs: By all that they depend on.
        families: Programs for all sizes, by all but the sizes.
        graphs: Number of graphs so far.
        periods: Numbers n for which there is another graph for each n-th call.
    """

    def __init__(self, step: Stage) -> None:
        flat: Any = optree.tree_flatten(step)  # pyright: ignore[reportArgumentType]
        self.step = flat
        self.tensors = [leaf for leaf in self.step[0] if isinstance(leaf, Tensor)]
        self.plans = Plans(step)
        self.programs: dict[Any, Program] = {}
        self.families: dict[Any, Family] = defaultdict(Family)
        self.graphs = 0
        self.periods: set[int] = set()

    def due(self, calls: Tensor) -> tuple[int, ...]:
        """Those of the `periods` of which the call after `calls` is a multiple."""
        if not self.periods:
            return ()
        # Members of a population that differ in this are refused by the stage.
        count = calls.reshape(-1)[:1].tolist()[0] + 1
        return tuple([n for n in sorted(self.periods) if count % n == 0])
