"""What a compiled step caches."""

from __future__ import annotations

from typing import Any

import optree
from torch import Tensor

from fnloop.stages.base import Stage
from fnloop.transforms.plan import Plans
from fnloop.transforms.program import Program


class Cache:
    """The plans of a step's states, and its programs; and the step itself, as leaves."""

    def __init__(self, step: Stage) -> None:
        flat: Any = optree.tree_flatten(step)  # pyright: ignore[reportArgumentType]
        self.step = flat
        self.tensors = [leaf for leaf in self.step[0] if isinstance(leaf, Tensor)]
        self.plans = Plans(step)
        self.programs: dict[Any, Program] = {}
