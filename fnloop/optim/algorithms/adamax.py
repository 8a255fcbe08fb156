"""Adamax."""

from __future__ import annotations

from typing import Any

from fnloop.optim.base import Memory, Optimizer, Step, correction, counter, descent
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class adamax(Optimizer):
    """Adam with the infinity norm (Kingma & Ba, 2015, algorithm 2); ``torch.optim.Adamax``.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the running maximum of the gradient's absolute value.
        eps: Added to the gradient's absolute value.
        weight_decay: L2 penalty, added to the gradient.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = adamax(0.1)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    by_value = True
    lr: NonNegative = 2e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    maximize: bool = False
    name: str = "adamax"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        return {"mu": params.zeros(), "nu": params.zeros(), "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = self.at(step, "lr", "b1", "b2", "eps", "weight_decay")
        g = descent(grads, params, decay, self.maximize)
        count = own["count"] + 1
        mu = own["mu"].lerp(g, 1 - b1)
        nu = own["nu"].scale(b2).maximum(g.abs().add(eps))
        updates = mu.scale(-lr / correction(b1, count)).div(nu)
        return updates, {**memory, self.name: {**own, "mu": mu, "nu": nu, "count": count}}
