"""``Around``: the base class of an optimizer that changes how another one is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

from torch import Tensor

from fnloop.optim.base import Memory, Number, Optimizer, Step, replaced
from fnloop.values.tensors import Tensors


class Around(Optimizer):
    """An optimizer with a memory of its own around the one in its field ``optimizer``."""

    by_value = True  # it asks its part
    optimizer: Any

    def names(self) -> tuple[str, ...]:
        return (self.name, *self.optimizer.names())

    def discards(self, params: Tensors) -> Collection[str]:
        return self.optimizer.discards(params)

    def init(self, params: Tensors) -> Memory:
        return {**super().init(params), **self.optimizer.init(params)}

    def hyperparameters(self) -> dict[str, Any]:
        return {**super().hyperparameters(), **self.optimizer.hyperparameters()}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return self.optimizer.measured(memory)

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        return replaced(super().resolve(step, scale), optimizer=self.optimizer.resolve(step, scale))

    def with_values(self, values: Mapping[str, Any]) -> Self:
        return replaced(super().with_values(values), optimizer=self.optimizer.with_values(values))
