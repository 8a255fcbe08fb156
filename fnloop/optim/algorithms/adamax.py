"""Adamax."""

from __future__ import annotations

from typing import Any, ClassVar

from fnloop._torch import foreach
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    correction,
    counter,
    descent,
    named,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class adamax(Optimizer):
    """Adam with the infinity norm (Kingma & Ba, 2015, algorithm 2); ``torch.optim.Adamax``.

    Args:
        lr: Learning rate.
        b1: Decay of the gradient's running mean.
        b2: Decay of the gradient's running maximum.
        eps: Added to the gradient's absolute value.
        weight_decay: L2 penalty, added to the gradient.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> import torch
    >>> optimizer = adamax(0.1)
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 2e-3
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    maximize: bool = False
    name: str = "adamax"

    def memory(self, params: Tensors) -> dict[str, Any]:
        return {"mu": zeros_like(params), "nu": zeros_like(params), "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = (
            at(v, step) for v in (self.lr, self.b1, self.b2, self.eps, self.weight_decay)
        )
        g = descent(grads, params, decay, self.maximize)
        count = own["count"] + 1
        mu = foreach.lerp(list(own["mu"].values()), g, 1 - b1)
        nu = foreach.maximum(
            foreach.mul(list(own["nu"].values()), b2), foreach.add(foreach.abs(g), eps)
        )
        updates = foreach.div(foreach.mul(mu, -lr / correction(b1, count)), nu)
        new = {**own, "mu": named(params, mu), "nu": named(params, nu), "count": count}
        return named(params, updates), {**memory, self.name: new}
