"""NAdam."""

from __future__ import annotations

from typing import Any

import torch

from fnloop.optim.base import Memory, Optimizer, Step, correction, counter, decayed, descent
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class nadam(Optimizer):
    """Adam with Nesterov momentum (Dozat, 2016, algorithm 8); ``torch.optim.NAdam``.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient.
        eps: Added to the denominator.
        weight_decay: Coefficient of the L2 penalty, or of decoupled weight decay.
        momentum_decay: Rate at which the momentum warms up to `b1`.
        decoupled: Use decoupled weight decay instead of the L2 penalty.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = nadam(0.1)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"].shape
    torch.Size([2])
    """

    by_value = True
    lr: NonNegative = 2e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    momentum_decay: NonNegative = 4e-3
    decoupled: bool = False
    maximize: bool = False
    name: str = "nadam"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        count = counter(params)
        product = torch.ones_like(count, dtype=torch.float64)
        return {"mu": params.zeros(), "nu": params.zeros(), "count": count, "b1_product": product}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay, slow = self.at(
            step, "lr", "b1", "b2", "eps", "weight_decay", "momentum_decay"
        )
        g = descent(grads, params, 0.0 if self.decoupled else decay, self.maximize)
        count = own["count"] + 1
        now, then = (b1 * (1 - 0.5 * 0.96 ** (t.double() * slow)) for t in (count, count + 1))
        product = own["b1_product"] * now
        mu, nu = own["mu"].lerp(g, 1 - b1), own["nu"].lerp(g.mul(g), 1 - b2)
        root = nu.div(correction(b2, count)).sqrt()
        ahead = g.scale(-lr * (1 - now) / (1 - product))
        ahead = ahead.add(mu.scale(-lr * then / (1 - product * then)))
        updates = ahead.div(root.add(eps))
        if self.decoupled:
            updates = decayed(updates, params, lr, decay)
        new = {**own, "mu": mu, "nu": nu, "count": count, "b1_product": product}
        return updates, {**memory, self.name: new}
