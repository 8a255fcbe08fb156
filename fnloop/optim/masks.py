"""An optimizer or gradient transform for a subset of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self

from torch import Tensor

from fnloop.optim.base import (
    Makes,
    Memory,
    Number,
    Optimizer,
    Step,
    check_named,
    check_one_gradient,
    replaced,
)
from fnloop.optim.patterns import Where, as_where, check_patterns, chosen
from fnloop.optim.pieces import applied, updates_of
from fnloop.trees.nodes import static, tree
from fnloop.values.choice import Flag
from fnloop.values.tensors import Tensors


@tree
class masked(Optimizer):
    """Apply an optimizer or gradient transform to a subset of the parameters.

    The other parameters stay unchanged under an optimizer. Under a gradient transform, or under
    ``masked(freeze(), ...)``, the other gradients pass through unchanged.

    Args:
        optimizer: The optimizer or gradient transform.
        where: A function ``(name, parameter) -> bool``, or patterns. A pattern is a parameter's
            name, a module's name, or a glob (``"*.bias"``).

    Raises:
        TypeError: The optimizer evaluates the loss itself (`lbfgs`).
        ValueError: At `init`, a pattern matches no parameter.

    >>> import torch
    >>> from fnloop.optim import sgd
    >>> optimizer = masked(sgd(1.0), ["head"])
    >>> params = Tensors({"body.w": torch.ones(1), "head.w": torch.ones(1)})
    >>> dict(optimizer.update(params, optimizer.init(params), params, step=0)[0])
    {'body.w': tensor([0.]), 'head.w': tensor([-1.])}
    """

    by_value = True  # it asks its parts
    optimizer: Optimizer
    where: Where = static()

    def __init__(
        self, optimizer: Optimizer, where: Callable[[str, Tensor], bool] | Iterable[str]
    ) -> None:
        check_one_gradient("masked", [optimizer])
        object.__setattr__(self, "optimizer", optimizer)
        object.__setattr__(self, "where", as_where(where))

    @property
    def makes(self) -> Makes:
        return "updates" if self.optimizer.makes == "updates" else "gradients"

    @property
    def mixes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.optimizer.mixes

    def discards(self, params: Tensors) -> Collection[str]:
        names = chosen(self.where, params)
        inside = set(self.optimizer.discards(params.select(names)))
        others = set(params.names).difference(names) if self.makes == "updates" else set[str]()
        return inside | others

    def names(self) -> tuple[str, ...]:
        return self.optimizer.names()

    def init(self, params: Tensors) -> Memory:
        check_named(params)
        if not callable(self.where):
            check_patterns("masked", self.where, params, True)
        return self.optimizer.init(params.select(chosen(self.where, params)))

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        names = chosen(self.where, params)
        others = grads.zeros() if self.makes == "updates" else grads.wide()
        if not names:  # none of its parameters has a gradient: keep its memory
            return others, memory
        made, memory = updates_of(
            self.optimizer, grads.select(names), memory, params.select(names), step
        )
        return others.updated(made), memory

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        if self.makes != "updates":
            return super().apply(grads, memory, params, step, finite)
        names = chosen(self.where, params)
        if not names:
            return params, memory
        made, memory = applied(
            self.optimizer, grads.select(names), memory, params.select(names), step, finite
        )
        return params.updated(made), memory

    def hyperparameters(self) -> dict[str, Any]:
        return self.optimizer.hyperparameters()

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return self.optimizer.measured(memory)

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        return replaced(self, optimizer=self.optimizer.resolve(step, scale))

    def with_values(self, values: Mapping[str, Any]) -> Self:
        return replaced(self, optimizer=self.optimizer.with_values(values))
