"""NAdam."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fnloop._torch import foreach
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    correction,
    counter,
    decayed,
    descent,
    named,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class nadam(Optimizer):
    """Adam with Nesterov momentum (Dozat, 2016, algorithm 8); ``torch.optim.NAdam``.

    Args:
        lr: Learning rate.
        b1: Decay of the gradient's running mean.
        b2: Decay of the squared gradient's running mean.
        eps: Added to the denominator.
        weight_decay: L2 penalty, or decoupled weight decay.
        momentum_decay: How fast the momentum warms up to `b1`.
        decoupled: Take ``lr * weight_decay * parameter`` off instead of adding to the gradient.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> import torch
    >>> optimizer = nadam(0.1)
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"].shape
    torch.Size([2])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 2e-3
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    momentum_decay: Any = 4e-3
    decoupled: bool = False
    maximize: bool = False
    name: str = "nadam"

    def memory(self, params: Tensors) -> dict[str, Any]:
        count = counter(params)
        return {
            "mu": zeros_like(params),
            "nu": zeros_like(params),
            "count": count,
            "b1_product": torch.ones_like(count, dtype=torch.float64),
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay, slow = (
            at(v, step)
            for v in (self.lr, self.b1, self.b2, self.eps, self.weight_decay, self.momentum_decay)
        )
        g = descent(grads, params, 0.0 if self.decoupled else decay, self.maximize)
        count = own["count"] + 1
        now, then = (b1 * (1 - 0.5 * 0.96 ** (t.double() * slow)) for t in (count, count + 1))
        product = own["b1_product"] * now
        mu = foreach.lerp(list(own["mu"].values()), g, 1 - b1)
        nu = foreach.lerp(list(own["nu"].values()), foreach.mul(g, g), 1 - b2)
        root = foreach.sqrt(foreach.div(nu, correction(b2, count)))
        ahead = foreach.add(
            foreach.mul(g, -lr * (1 - now) / (1 - product)),
            foreach.mul(mu, -lr * then / (1 - product * then)),
        )
        updates = foreach.div(ahead, foreach.add(root, eps))
        if self.decoupled:
            updates = decayed(updates, params, lr, decay)
        new = {
            **own,
            "mu": named(params, mu),
            "nu": named(params, nu),
            "count": count,
            "b1_product": product,
        }
        return named(params, updates), {**memory, self.name: new}
