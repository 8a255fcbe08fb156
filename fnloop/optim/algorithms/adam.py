"""Adam and AdamW."""

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
    correction,
    counter,
    decayed,
    descent,
    named,
    zeros_like,
)
from fnloop.trees.nodes import tree


class _Adam(Optimizer):
    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True
    decoupled: ClassVar[bool]

    lr: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    amsgrad: bool
    maximize: bool

    def memory(self, params: Tensors) -> dict[str, Any]:
        moments = {"mu": zeros_like(params), "nu": zeros_like(params)}
        if self.amsgrad:
            moments["nu_max"] = zeros_like(params)
        return {**moments, "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = (
            at(v, step) for v in (self.lr, self.b1, self.b2, self.eps, self.weight_decay)
        )
        g = descent(grads, params, 0.0 if self.decoupled else decay, self.maximize)
        count = own["count"] + 1
        mu = foreach.lerp(list(own["mu"].values()), g, 1 - b1)
        nu = foreach.lerp(list(own["nu"].values()), foreach.mul(g, g), 1 - b2)
        new = {**own, "mu": named(params, mu), "nu": named(params, nu), "count": count}
        if self.amsgrad:
            nu = foreach.maximum(list(own["nu_max"].values()), nu)
            new["nu_max"] = named(params, nu)
        # With the root of the correction multiplied out, each value costs one division, not two.
        root = correction(b2, count) ** 0.5
        rate = -lr * root / correction(b1, count)
        updates = foreach.div(foreach.mul(mu, rate), foreach.add(foreach.sqrt(nu), eps * root))
        if self.decoupled:
            updates = decayed(updates, params, lr, decay)
        return named(params, updates), {**memory, self.name: new}

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: bool | Tensor
    ) -> tuple[Tensors, Memory]:
        if finite is False:
            return params, memory
        lr, b1, b2, eps, decay = [
            at(v, step) for v in (self.lr, self.b1, self.b2, self.eps, self.weight_decay)
        ]
        apart = self.decoupled and isinstance(decay, Tensor)  # the kernel wants it as a number
        if not fused.usable(grads, params, lr, b1, b2, eps, 0.0 if apart else decay):
            return super().apply(grads, memory, params, step, finite)
        own = memory[self.name]
        parts = ("mu", "nu", "nu_max") if self.amsgrad else ("mu", "nu")
        new_params, *moments = fused.copies(params, *(own[part] for part in parts))
        if apart:
            foreach.mul_(new_params, torch.where(torch.as_tensor(finite), 1 - lr * decay, 1.0))
        count = own["count"] + 1
        kernel = fused.adamw_ if self.decoupled else fused.adam_
        kernel(
            new_params,
            list(grads.values()),
            moments[0],
            moments[1],
            moments[2] if self.amsgrad else [],
            [count] * len(params),
            lr=fused.rate(lr),
            beta1=float(b1),
            beta2=float(b2),
            weight_decay=0.0 if apart else float(decay),
            eps=float(eps),
            amsgrad=self.amsgrad,
            maximize=self.maximize,
            grad_scale=None,
            found_inf=fused.found_inf(finite),
        )
        new: dict[str, Any] = {
            part: named(params, moment) for part, moment in zip(parts, moments, strict=True)
        }
        new["count"] = count if finite is True else fused.counted(own["count"], finite)
        return named(params, new_params), {**memory, self.name: {**own, **new}}


@tree
class adam(_Adam):
    """Adam (Kingma & Ba, 2015, algorithm 1); ``torch.optim.Adam``.

    Args:
        lr: Learning rate.
        b1: Decay of the gradient's running mean.
        b2: Decay of the squared gradient's running mean.
        eps: Added to the denominator.
        weight_decay: L2 penalty, added to the gradient (`adamw` decouples it).
        amsgrad: Use the largest second moment so far (Reddi et al., 2018).
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> optimizer = adam(1e-3)
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.0010, -0.0010])
    """

    decoupled: ClassVar[bool] = False

    lr: Any = 1e-3
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    amsgrad: bool = False
    maximize: bool = False
    name: str = "adam"


@tree
class adamw(_Adam):
    """Decoupled weight decay (Loshchilov & Hutter, 2019, algorithm 2); ``torch.optim.AdamW``.

    Args:
        lr: Learning rate.
        b1: Decay of the gradient's running mean.
        b2: Decay of the squared gradient's running mean.
        eps: Added to the denominator.
        weight_decay: Fraction of ``lr * parameter`` taken off each step.
        amsgrad: Use the largest second moment so far (Reddi et al., 2018).
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> optimizer = adamw(3e-4, weight_decay=0.1)
    >>> optimizer.hyperparameters()
    {'adamw.lr': 0.0003, 'adamw.weight_decay': 0.1}
    """

    decoupled: ClassVar[bool] = True

    lr: Any = 1e-3
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.01
    amsgrad: bool = False
    maximize: bool = False
    name: str = "adamw"
