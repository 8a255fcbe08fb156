"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch import foreach, fused
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    counter,
    descent,
    is_zero,
    named,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class sgd(Optimizer):
    """Stochastic gradient descent (Sutskever et al., 2013, eq. 1 to 4); ``torch.optim.SGD``.

    Args:
        lr: Learning rate.
        momentum: Decay of the sum of gradients that is followed.
        dampening: Fraction of each gradient, the first one excepted, left out of that sum.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: Look ahead along the momentum.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    Raises:
        ValueError: `nesterov` without momentum, or with dampening.

    >>> optimizer = sgd(0.1)
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 1e-3
    momentum: Any = 0.0
    dampening: Any = 0.0
    weight_decay: Any = 0.0
    nesterov: bool = False
    maximize: bool = False
    name: str = "sgd"

    def __post_init__(self) -> None:
        if self.nesterov and (is_zero(self.momentum) or not is_zero(self.dampening)):
            raise ValueError(
                f"sgd: nesterov=True needs momentum and no dampening; got momentum="
                f"{self.momentum!r}, dampening={self.dampening!r}. Usual: momentum=0.9."
            )

    def memory(self, params: Tensors) -> dict[str, Any]:
        if is_zero(self.momentum):
            return {}
        momentum = {"momentum": zeros_like(params)}
        return momentum if is_zero(self.dampening) else {**momentum, "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, momentum, dampening, decay = (
            at(v, step) for v in (self.lr, self.momentum, self.dampening, self.weight_decay)
        )
        g = descent(grads, params, decay, self.maximize)
        # A momentum that a schedule has brought to zero still has its memory.
        if is_zero(momentum) and "momentum" not in own:
            return named(params, foreach.mul(g, -lr)), memory
        taken, new = g, dict(own)
        if not is_zero(dampening) or "count" in own:
            taken = foreach.mul(g, torch.where(own["count"] == 0, 1.0, 1 - dampening))
            new["count"] = own["count"] + 1
        buffer = foreach.add(foreach.mul(list(own["momentum"].values()), momentum), taken)
        new["momentum"] = named(params, buffer)
        direction = foreach.add(g, foreach.mul(buffer, momentum)) if self.nesterov else buffer
        return named(params, foreach.mul(direction, -lr)), {**memory, self.name: new}

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: bool | Tensor
    ) -> tuple[Tensors, Memory]:
        if finite is False:
            return params, memory
        lr, momentum, decay = (at(v, step) for v in (self.lr, self.momentum, self.weight_decay))
        own = memory[self.name]
        damped = not is_zero(self.dampening) or "count" in own
        if damped or not fused.usable(grads, params, lr, momentum, decay):
            return super().apply(grads, memory, params, step, finite)
        plain = is_zero(momentum) and "momentum" not in own
        if not plain and float(momentum) == 0:  # for which the kernel wants no memory
            return super().apply(grads, memory, params, step, finite)
        new_params, *buffers = fused.copies(params, *([] if plain else [own["momentum"]]))
        fused.sgd_(
            new_params,
            list(grads.values()),
            [] if plain else buffers[0],
            weight_decay=float(decay),
            momentum=float(momentum),
            lr=fused.rate(lr),
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=self.maximize,
            is_first_step=False,
            grad_scale=None,
            found_inf=fused.found_inf(finite),
        )
        new = own if plain else {**own, "momentum": named(params, buffers[0])}
        return named(params, new_params), {**memory, self.name: new}
