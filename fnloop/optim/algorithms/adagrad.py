"""Adagrad."""

from __future__ import annotations

from typing import Any

from fnloop._torch import fused
from fnloop.optim.base import Memory, Optimizer, Step, counter, descent
from fnloop.schedules.base import at
from fnloop.schedules.ranges import NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.choice import Flag, select
from fnloop.values.fused_update import FusedUpdate
from fnloop.values.looking import counted, look
from fnloop.values.tensors import Tensors


@tree
class adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011, section 1.2, diagonal); ``torch.optim.Adagrad``.

    Args:
        lr: Learning rate.
        lr_decay: Divides the learning rate by ``1 + lr_decay * t`` after t updates.
        weight_decay: L2 penalty, added to the gradient.
        initial_accumulator: Initial value of the sum of squares.
        eps: Added to the square root of the sum of squares.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    >>> import torch
    >>> optimizer = adagrad(0.1)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    by_value = True
    lr: NonNegative = 1e-2
    lr_decay: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    initial_accumulator: NonNegative = 0.0
    eps: NonNegative = 1e-10
    maximize: bool = False
    name: str = "adagrad"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        start = at(self.initial_accumulator, 0)
        return {"sum": params.zeros().add(start), "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, lr_decay, decay, eps = self.at(step, "lr", "lr_decay", "weight_decay", "eps")
        g = descent(grads, params, decay, self.maximize)
        total = own["sum"].add(g.mul(g))
        rate = -lr / (1 + own["count"].double() * lr_decay)
        updates = g.scale(rate).div(total.sqrt().add(eps))
        return updates, {**memory, self.name: {**own, "sum": total, "count": own["count"] + 1}}

    def fused(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> FusedUpdate | None:
        own = memory[self.name]
        count = counted(own["count"], look(own["count"]))
        lr, lr_decay, decay, eps = self.at(step, "lr", "lr_decay", "weight_decay", "eps")

        def remember(total: Tensors) -> Memory:
            new_count = select(finite, count, own["count"])
            return {**memory, self.name: {**own, "sum": total, "count": new_count}}

        return params.fused(
            fused.adagrad, grads, [own["sum"]], count, finite, remember=remember,
            lr=lr, lr_decay=lr_decay, weight_decay=decay, eps=eps, maximize=self.maximize,
        )  # fmt: skip
