"""RAdam."""

from __future__ import annotations

from typing import Any

import torch

from fnloop.optim.base import Memory, Optimizer, Step, correction, counter, decayed, descent
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.looking import look
from fnloop.values.tensors import Tensors


@tree
class radam(Optimizer):
    """Adam with a rectified variance (Liu et al., 2020, algorithm 2); ``torch.optim.RAdam``.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient.
        eps: Added to the denominator.
        weight_decay: Coefficient of the L2 penalty, or of decoupled weight decay.
        decoupled: Use decoupled weight decay instead of the L2 penalty.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> optimizer = radam(0.1)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    by_value = True
    lr: NonNegative = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    decoupled: bool = False
    maximize: bool = False
    name: str = "radam"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        return {"mu": params.zeros(), "nu": params.zeros(), "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = self.at(step, "lr", "b1", "b2", "eps", "weight_decay")
        g = descent(grads, params, 0.0 if self.decoupled else decay, self.maximize)
        count = own["count"] + 1
        mu, nu = own["mu"].lerp(g, 1 - b1), own["nu"].lerp(g.mul(g), 1 - b2)
        correction2 = correction(b2, count)
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * count.double() * b2 ** count.double() / correction2
        tractable = length > 5
        # Keep the argument of the root positive where it is unused, or its gradient would be nan.
        safe = torch.where(tractable, length, 6.0)
        rectification = (
            (safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe)
        ) ** 0.5
        mean = mu.scale(-lr / correction(b1, count))
        adapted = mean.scale(correction2**0.5 * rectification).div(nu.sqrt().add(eps))
        updates = adapted.where(look(tractable), mean)
        if self.decoupled:
            updates = decayed(updates, params, lr, decay)
        return updates, {**memory, self.name: {**own, "mu": mu, "nu": nu, "count": count}}
