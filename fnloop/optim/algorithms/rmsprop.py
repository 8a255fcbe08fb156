"""RMSprop."""

from __future__ import annotations

from typing import Any

from fnloop.optim.base import Memory, Optimizer, Step, descent, is_zero
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class rmsprop(Optimizer):
    """RMSprop (Tieleman & Hinton, 2012; centred: Graves, 2013, eq. 38); ``torch.optim.RMSprop``.

    Args:
        lr: Learning rate.
        alpha: Decay rate of the moving average of the squared gradient.
        eps: Added to the square root of that average.
        weight_decay: L2 penalty, added to the gradient.
        momentum: Decay rate of the momentum, a sum of scaled gradients.
        centered: Divide by the standard deviation instead of the root mean square.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = rmsprop(0.01)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    by_value = True
    lr: NonNegative = 1e-2
    alpha: Decay = 0.99
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.0
    centered: bool = False
    maximize: bool = False
    name: str = "rmsprop"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        memory = {"nu": params.zeros()}
        if self.centered:
            memory["mu"] = params.zeros()
        if not is_zero(self.momentum):
            memory["momentum"] = params.zeros()
        return memory

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, alpha, eps, decay, momentum = self.at(
            step, "lr", "alpha", "eps", "weight_decay", "momentum"
        )
        g = descent(grads, params, decay, self.maximize)
        nu = own["nu"].lerp(g.mul(g), 1 - alpha)
        new = {**own, "nu": nu}
        if self.centered:
            mu = new["mu"] = own["mu"].lerp(g, 1 - alpha)
            nu = nu.sub(mu.mul(mu))
        direction = g.div(nu.sqrt().add(eps))
        # A schedule may reach zero: the momentum buffer then stays in use.
        if not is_zero(momentum) or "momentum" in own:
            direction = new["momentum"] = own["momentum"].scale(momentum).add(direction)
        return direction.scale(-lr), {**memory, self.name: new}
