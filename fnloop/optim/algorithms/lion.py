"""Lion."""

from __future__ import annotations

from typing import Any

from fnloop.optim.base import Memory, Optimizer, Step, decayed
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class lion(Optimizer):
    """Lion: evolved sign momentum (Chen et al., 2023, algorithm 2).

    Args:
        lr: Learning rate; typically 3 to 10 times smaller than for AdamW.
        b1: Weight of the momentum in the interpolation whose sign is the update direction.
        b2: Decay rate of the momentum.
        weight_decay: Decoupled; each step subtracts ``lr * weight_decay * parameter``.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = lion(0.01)
    >>> params = Tensors({"w": torch.tensor([3.0, -1.0])})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.0100,  0.0100])
    """

    by_value = True
    lr: NonNegative = 1e-4
    b1: Decay = 0.9
    b2: Decay = 0.99
    weight_decay: NonNegative = 0.0
    name: str = "lion"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        return {"mu": params.zeros()}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, decay = self.at(step, "lr", "b1", "b2", "weight_decay")
        g, old = grads.wide(), own["mu"]
        updates = decayed(old.lerp(g, 1 - b1).sign().scale(-lr), params, lr, decay)
        return updates, {**memory, self.name: {**own, "mu": old.lerp(g, 1 - b2)}}
