"""Lion."""

from __future__ import annotations

from typing import Any, ClassVar

from fnloop._torch import foreach
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    decayed,
    named,
    values,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class lion(Optimizer):
    """Evolved sign momentum (Chen et al., 2023, algorithm 2).

    Args:
        lr: Learning rate; 3 to 10 times smaller than for AdamW.
        b1: Weight of the momentum in the direction whose sign is followed.
        b2: Decay of the momentum.
        weight_decay: Fraction of ``lr * parameter`` taken off each step.
        name: Of its memory and hyperparameters.

    >>> import torch
    >>> optimizer = lion(0.01)
    >>> params = {"w": torch.tensor([3.0, -1.0])}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.0100,  0.0100])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 1e-4
    b1: Any = 0.9
    b2: Any = 0.99
    weight_decay: Any = 0.0
    name: str = "lion"

    def memory(self, params: Tensors) -> dict[str, Any]:
        return {"mu": zeros_like(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, decay = (at(v, step) for v in (self.lr, self.b1, self.b2, self.weight_decay))
        g, old = values(grads), list(own["mu"].values())
        sign = foreach.sign(foreach.lerp(old, g, 1 - b1))
        mu = foreach.lerp(old, g, 1 - b2)
        updates = decayed(foreach.mul(sign, -lr), params, lr, decay)
        return named(params, updates), {**memory, self.name: {**own, "mu": named(params, mu)}}
