"""RMSprop."""

from __future__ import annotations

from typing import Any, ClassVar

from fnloop._torch import foreach
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    descent,
    is_zero,
    named,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class rmsprop(Optimizer):
    """RMSprop (Tieleman & Hinton, 2012; centred: Graves, 2013, eq. 38); ``torch.optim.RMSprop``.

    Args:
        lr: Learning rate.
        alpha: Decay of the squared gradient's running mean.
        eps: Added to the root of the squared gradient's mean.
        weight_decay: L2 penalty, added to the gradient.
        momentum: Decay of the sum of scaled gradients that is followed.
        centered: Divide by the standard deviation instead of the root mean square.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> import torch
    >>> optimizer = rmsprop(0.01)
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 1e-2
    alpha: Any = 0.99
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    momentum: Any = 0.0
    centered: bool = False
    maximize: bool = False
    name: str = "rmsprop"

    def memory(self, params: Tensors) -> dict[str, Any]:
        memory = {"nu": zeros_like(params)}
        if self.centered:
            memory["mu"] = zeros_like(params)
        if not is_zero(self.momentum):
            memory["momentum"] = zeros_like(params)
        return memory

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, alpha, eps, decay, momentum = (
            at(v, step) for v in (self.lr, self.alpha, self.eps, self.weight_decay, self.momentum)
        )
        g = descent(grads, params, decay, self.maximize)
        nu = foreach.lerp(list(own["nu"].values()), foreach.mul(g, g), 1 - alpha)
        new = {**own, "nu": named(params, nu)}
        if self.centered:
            mu = foreach.lerp(list(own["mu"].values()), g, 1 - alpha)
            new["mu"] = named(params, mu)
            nu = foreach.sub(nu, foreach.mul(mu, mu))
        direction = foreach.div(g, foreach.add(foreach.sqrt(nu), eps))
        # A momentum that a schedule has brought to zero still has its memory.
        if not is_zero(momentum) or "momentum" in own:
            direction = foreach.add(
                foreach.mul(list(own["momentum"].values()), momentum), direction
            )
            new["momentum"] = named(params, direction)
        return named(params, foreach.mul(direction, -lr)), {**memory, self.name: new}
