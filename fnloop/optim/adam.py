"""Adam and AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop._torch.tracing import tracing
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    fused_on,
    keep_if,
    named,
    zeros_like,
)
from fnloop.trees import tree


class _Adam(Optimizer):
    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
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
        device = next(iter(params.values())).device if params else None
        return {**moments, "count": torch.zeros((), device=device)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = (
            at(v, step) for v in (self.lr, self.b1, self.b2, self.eps, self.weight_decay)
        )
        g, p = list(grads.values()), list(params.values())
        if self.maximize:
            g = foreach.mul(g, -1.0)
        if not self.decoupled and not _zero(decay):
            g = foreach.add(g, foreach.mul(p, decay))
        mu = foreach.lerp(list(own["mu"].values()), g, 1 - b1)
        nu = foreach.lerp(list(own["nu"].values()), foreach.mul(g, g), 1 - b2)
        new = {**own, "mu": named(params, mu), "nu": named(params, nu)}
        if self.amsgrad:
            nu = foreach.maximum(list(own["nu_max"].values()), nu)
            new["nu_max"] = named(params, nu)
        count = new["count"] = own["count"] + 1
        correction1, correction2 = 1 - b1**count, 1 - b2**count
        denominator = foreach.add(foreach.div(foreach.sqrt(nu), correction2**0.5), eps)
        updates = foreach.div(foreach.mul(mu, -lr / correction1), denominator)
        if self.decoupled and not _zero(decay):
            updates = foreach.add(updates, foreach.mul(p, -lr * decay))
        return named(params, updates), {**memory, self.name: new}

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: bool | Tensor
    ) -> tuple[Tensors, Memory]:
        if finite is False:
            return params, memory
        own, p, g = memory[self.name], list(params.values()), list(grads.values())
        if tracing() or not fused_on(p + g):
            return super().apply(grads, memory, params, step, finite)
        n = len(p)
        moments = [own[k] for k in ("mu", "nu", "nu_max") if k in own]
        fresh = foreach.clone([*p, *(t for moment in moments for t in moment.values())])
        parts = [fresh[i : i + n] for i in range(0, len(fresh), n)]
        count = own["count"] + 1
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        kernel(
            parts[0],
            g,
            parts[1],
            parts[2],
            parts[3] if self.amsgrad else [],
            [count] * n,
            lr=at(self.lr, step),
            beta1=float(at(self.b1, step)),
            beta2=float(at(self.b2, step)),
            weight_decay=float(at(self.weight_decay, step)),
            eps=float(at(self.eps, step)),
            amsgrad=self.amsgrad,
            maximize=self.maximize,
            grad_scale=None,
            found_inf=None,
        )
        new = {"mu": named(params, parts[1]), "nu": named(params, parts[2]), "count": count}
        if self.amsgrad:
            new["nu_max"] = named(params, parts[3])
        new_params, new_memory = named(params, parts[0]), {**memory, self.name: new}
        return keep_if(finite, new_params, params), keep_if(finite, new_memory, memory)


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
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, algorithm 2); ``torch.optim.AdamW``.

    Args:
        lr: Learning rate.
        b1: Decay of the gradient's running mean.
        b2: Decay of the squared gradient's running mean.
        eps: Added to the denominator.
        weight_decay: Fraction of ``lr * parameter`` taken off each step.
        amsgrad: Use the largest second moment so far (Reddi et al., 2018).
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> adamw(3e-4, weight_decay=0.1)
    adamw(lr=0.0003, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.1, amsgrad=False, maximize=False, name='adamw')
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


def _zero(value: Any) -> bool:
    return not isinstance(value, Tensor) and value == 0
