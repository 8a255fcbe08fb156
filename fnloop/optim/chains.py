"""Gradient transforms applied in sequence."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Self

from torch import Tensor

from fnloop.optim.base import Makes, Memory, Number, Optimizer, Step, check_one_gradient, replaced
from fnloop.optim.pieces import applied, updates_of
from fnloop.trees.nodes import tree
from fnloop.values.choice import Flag, select
from fnloop.values.fused_update import FusedUpdate
from fnloop.values.tensors import Tensors


@tree
class chain(Optimizer):
    """Apply gradient transforms and optimizers in sequence: each gets the previous output.

    Memory and hyperparameters keep the names of the parts.

    Args:
        *optimizers: Gradient transforms and, usually last, an optimizer.

    Raises:
        TypeError: One of them is not an optimizer, or evaluates the loss itself (`lbfgs`).
        ValueError: There is none, or two have the same name.

    >>> from fnloop.optim import add_decayed_weights, sgd
    >>> optimizer = chain(add_decayed_weights(0.1), sgd(1.0))
    >>> sorted(optimizer.hyperparameters())
    ['add_decayed_weights.weight_decay', 'sgd.lr', 'sgd.weight_decay']
    """

    by_value = True  # it asks its parts
    optimizers: tuple[Optimizer, ...]

    def __init__(self, *optimizers: Optimizer) -> None:
        if not optimizers:
            raise ValueError("chain needs at least one optimizer.")
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"chain takes optimizers; got {optimizer!r} ({type(optimizer).__name__}). A "
                    "class must be called (adamw(), not adamw), and torch's optimizers are wrapped "
                    "by from_torch."
                )
        check_one_gradient("chain", optimizers)
        object.__setattr__(self, "optimizers", optimizers)
        if twice := [name for name, n in Counter(self.names()).items() if n > 1]:
            raise ValueError(
                f"chain: two transforms are named {twice[0]!r}, so their memory would collide. "
                'Rename one of them: adamw(..., name="second").'
            )

    @property
    def makes(self) -> Makes:
        kinds: list[Makes] = [optimizer.makes for optimizer in self.optimizers]
        return kinds[-1] if kinds[-1] == "zeros" or "updates" not in kinds else "updates"

    def names(self) -> tuple[str, ...]:
        return tuple(name for optimizer in self.optimizers for name in optimizer.names())

    def init(self, params: Tensors) -> Memory:
        memory: Memory = {}
        for optimizer in self.optimizers:
            memory.update(optimizer.init(params))
        return memory

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        grads = self._used(grads, params)
        for optimizer in self.optimizers:
            grads, memory = updates_of(optimizer, grads, memory, params, step)
        return grads, memory

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        if finite is False:
            return params, memory
        grads, memory = self._before_last(grads, memory, params, step, finite)
        return applied(self.optimizers[-1], grads, memory, params, step, finite)

    def fused(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> FusedUpdate | None:
        grads, memory = self._before_last(grads, memory, params, step, finite)
        return self.optimizers[-1].fused(grads, memory, params, step, finite)

    @property
    def has_fused(self) -> bool:
        return self.optimizers[-1].has_fused

    def _before_last(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        """The gradients that the last optimizer gets, and the memory after all before it."""
        new, grads = memory, self._used(grads, params)
        for optimizer in self.optimizers[:-1]:
            grads, new = updates_of(optimizer, grads, new, params, step)
        return grads, select(finite, new, memory)

    @property
    def mixes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any([optimizer.mixes for optimizer in self.optimizers])

    def discards(self, params: Tensors) -> Collection[str]:
        return {name for optimizer in self.optimizers for name in optimizer.discards(params)}

    def _used(self, grads: Tensors, params: Tensors) -> Tensors:
        """The gradients, with zeros for those that would count in a norm, but are not used."""
        if not self.mixes or not (unused := self.discards(params)):
            return grads
        names = [name for name in grads if name in unused]
        return grads.updated(grads.select(names).zeros())

    def hyperparameters(self) -> dict[str, Any]:
        return {k: v for part in self.optimizers for k, v in part.hyperparameters().items()}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return {k: v for part in self.optimizers for k, v in part.measured(memory).items()}

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        resolved = tuple([optimizer.resolve(step, scale) for optimizer in self.optimizers])
        if all(map(operator.is_, resolved, self.optimizers)):
            return self
        return replaced(self, optimizers=resolved)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        return replaced(self, optimizers=tuple([o.with_values(values) for o in self.optimizers]))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.optimizers))})"
