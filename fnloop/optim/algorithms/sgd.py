"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch

from fnloop._torch import fused
from fnloop.optim.base import Memory, Optimizer, Step, counter, descent, is_zero
from fnloop.schedules.ranges import Hyper, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.choice import Flag
from fnloop.values.fused_update import FusedUpdate
from fnloop.values.tensors import Tensors


@tree
class sgd(Optimizer):
    """Stochastic gradient descent (Sutskever et al., 2013, eq. 1 to 4); ``torch.optim.SGD``.

    Args:
        lr: Learning rate.
        momentum: Decay rate of the momentum, a sum of gradients.
        dampening: Adds ``1 - dampening`` times each gradient, except the first, to that sum.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: Use Nesterov momentum.
        maximize: Maximize the loss instead of minimizing it.
        name: Key of its memory and prefix of its hyperparameters.

    Raises:
        ValueError: `nesterov` without momentum, or with dampening.

    >>> optimizer = sgd(0.1)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    by_value = True
    lr: NonNegative = 1e-3
    momentum: NonNegative = 0.0
    dampening: Hyper = 0.0
    weight_decay: NonNegative = 0.0
    nesterov: bool = False
    maximize: bool = False
    name: str = "sgd"

    def __post_init__(self) -> None:
        if self.nesterov and (is_zero(self.momentum) or not is_zero(self.dampening)):
            raise ValueError(
                f"sgd: nesterov=True needs momentum and no dampening; got momentum="
                f"{self.momentum!r}, dampening={self.dampening!r}. Usual: momentum=0.9."
            )

    def init_state(self, params: Tensors) -> dict[str, Any]:
        if is_zero(self.momentum):
            return {}
        momentum = {"momentum": params.zeros()}
        return momentum if is_zero(self.dampening) else {**momentum, "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, momentum, dampening, decay = self.at(
            step, "lr", "momentum", "dampening", "weight_decay"
        )
        g = descent(grads, params, decay, self.maximize)
        # A schedule may reach zero: the momentum buffer then stays in use.
        if is_zero(momentum) and "momentum" not in own:
            return g.scale(-lr), memory
        taken, new = g, dict(own)
        if not is_zero(dampening) or "count" in own:
            # Nothing is dampened without momentum, which may be zero for one member of a sweep.
            whole = (own["count"] == 0) | (momentum == 0)
            one = torch.ones((), dtype=torch.float64, device=whole.device)
            taken = g.scale(torch.where(whole, one, 1 - dampening))
            new["count"] = own["count"] + 1
        buffer = new["momentum"] = own["momentum"].scale(momentum).add(taken)
        direction = g.add(buffer.scale(momentum)) if self.nesterov else buffer
        return direction.scale(-lr), {**memory, self.name: new}

    def fused(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> FusedUpdate | None:
        own = memory[self.name]
        if not is_zero(self.dampening) or "count" in own:
            return None
        lr, momentum, decay = self.at(step, "lr", "momentum", "weight_decay")

        def remember(*momenta: Tensors) -> Memory:
            new = {**own, "momentum": momenta[0]} if momenta else own
            return {**memory, self.name: new}

        return params.fused(
            fused.sgd, grads, [own["momentum"]] if "momentum" in own else [], finite,
            remember=remember, lr=lr, momentum=momentum, weight_decay=decay,
            nesterov=self.nesterov, maximize=self.maximize,
        )  # fmt: skip
