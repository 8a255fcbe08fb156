"""Adadelta."""

from __future__ import annotations

from typing import Any

from fnloop.optim.base import Memory, Optimizer, Step, descent
from fnloop.schedules.ranges import NonNegative, Share
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class adadelta(Optimizer):
    """Adadelta (Zeiler, 2012, algorithm 1); ``torch.optim.Adadelta``.

    Args:
        lr: Learning rate; 1 in the paper.
        rho: Decay rate of both moving averages.
        eps: Added inside both square roots.
        weight_decay: L2 penalty, added to the gradient.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = adadelta()
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.0032, -0.0032])
    """

    by_value = True
    lr: NonNegative = 1.0
    rho: Share = 0.9
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 0.0
    maximize: bool = False
    name: str = "adadelta"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        return {"nu": params.zeros(), "delta": params.zeros()}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, rho, eps, decay = self.at(step, "lr", "rho", "eps", "weight_decay")
        g = descent(grads, params, decay, self.maximize)
        nu = own["nu"].lerp(g.mul(g), 1 - rho)
        change = own["delta"].add(eps).sqrt().div(nu.add(eps).sqrt()).mul(g)
        delta = own["delta"].lerp(change.mul(change), 1 - rho)
        return change.scale(-lr), {**memory, self.name: {**own, "nu": nu, "delta": delta}}
