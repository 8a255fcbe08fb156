"""``new_callback``: say in a line what it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

import fnloop as fl


@fl.tree
class new_callback(fl.base.Callback):
    """Add the lowest value of a metric so far to the metrics, as ``new_callback``.

    Args:
        monitor: The metric.
        name: Name of its memory in the state, and of what it adds.
    """

    label: ClassVar[str] = "new_callback"
    monitor: str
    name: str = "new_callback"

    def init_state(self, state: fl.State, metrics: Mapping[str, Any]) -> Tensor:
        """Its memory, made after the first step; ``state[self.name]`` from then on."""
        return torch.tensor(math.inf, dtype=torch.float64)

    def needs(self) -> tuple[str, ...]:
        """Metrics that it cannot do without: if nobody makes them, the run does not start."""
        return (self.monitor,)

    def __call__(self, state: fl.State, x: Mapping[str, Any]) -> tuple[fl.State, Mapping[str, Any]]:
        found = fl.metrics.find(x, self.monitor)
        if found is None:  # not at this step
            return state, x
        lowest = torch.fmin(state[self.name], torch.as_tensor(found, dtype=torch.float64))
        return state.put(self.name, lowest), {**x, self.name: fl.Last(lowest)}
