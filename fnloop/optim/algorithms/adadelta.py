"""Adadelta."""

from __future__ import annotations

from typing import Any, ClassVar

from fnloop._torch import foreach
from fnloop.optim.base import Memory, Optimizer, Step, Tensors, at, descent, named, zeros_like
from fnloop.trees.nodes import tree


@tree
class adadelta(Optimizer):
    """Adadelta (Zeiler, 2012, algorithm 1); ``torch.optim.Adadelta``.

    Args:
        lr: Factor on the update; 1 in the paper.
        rho: Decay of both running means.
        eps: Added under both roots.
        weight_decay: L2 penalty, added to the gradient.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> import torch
    >>> optimizer = adadelta()
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.0032, -0.0032])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 1.0
    rho: Any = 0.9
    eps: Any = 1e-6
    weight_decay: Any = 0.0
    maximize: bool = False
    name: str = "adadelta"

    def memory(self, params: Tensors) -> dict[str, Any]:
        return {"nu": zeros_like(params), "delta": zeros_like(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, rho, eps, decay = (
            at(v, step) for v in (self.lr, self.rho, self.eps, self.weight_decay)
        )
        g = descent(grads, params, decay, self.maximize)
        nu = foreach.lerp(list(own["nu"].values()), foreach.mul(g, g), 1 - rho)
        delta = list(own["delta"].values())
        root, rise = (foreach.sqrt(foreach.add(x, eps)) for x in (nu, delta))
        change = foreach.mul(foreach.div(rise, root), g)
        delta = foreach.lerp(delta, foreach.mul(change, change), 1 - rho)
        new = {**own, "nu": named(params, nu), "delta": named(params, delta)}
        return named(params, foreach.mul(change, -lr)), {**memory, self.name: new}
