"""Adagrad."""

from __future__ import annotations

from typing import Any, ClassVar

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
    named,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011, section 1.2, diagonal); ``torch.optim.Adagrad``.

    Args:
        lr: Learning rate.
        lr_decay: The learning rate is divided by ``1 + lr_decay * updates so far``.
        weight_decay: L2 penalty, added to the gradient.
        initial_accumulator: The sum of squares begins with it.
        eps: Added to the root of the sum of squares.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> import torch
    >>> optimizer = adagrad(0.1)
    >>> params = {"w": torch.ones(2)}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    joint: ClassVar[bool] = True

    lr: Any = 1e-2
    lr_decay: Any = 0.0
    weight_decay: Any = 0.0
    initial_accumulator: Any = 0.0
    eps: Any = 1e-10
    maximize: bool = False
    name: str = "adagrad"

    def memory(self, params: Tensors) -> dict[str, Any]:
        start = at(self.initial_accumulator, 0)
        sums = {name: zeros + start for name, zeros in zeros_like(params).items()}
        return {"sum": sums, "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, lr_decay, decay, eps = (
            at(v, step) for v in (self.lr, self.lr_decay, self.weight_decay, self.eps)
        )
        g = descent(grads, params, decay, self.maximize)
        total = foreach.add(list(own["sum"].values()), foreach.mul(g, g))
        scaled = foreach.mul(g, -lr / (1 + own["count"].double() * lr_decay))
        updates = foreach.div(scaled, foreach.add(foreach.sqrt(total), eps))
        new = {**own, "sum": named(params, total), "count": own["count"] + 1}
        return named(params, updates), {**memory, self.name: new}

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: bool | Tensor
    ) -> tuple[Tensors, Memory]:
        if finite is False:
            return params, memory
        lr, lr_decay, decay, eps = (
            at(v, step) for v in (self.lr, self.lr_decay, self.weight_decay, self.eps)
        )
        if not fused.usable(grads, params, lr, lr_decay, decay, eps):
            return super().apply(grads, memory, params, step, finite)
        own = memory[self.name]
        new_params, total = fused.copies(params, own["sum"])
        fused.adagrad_(
            new_params,
            list(grads.values()),
            total,
            [own["count"] + 1] * len(params),
            lr=fused.rate(lr),
            lr_decay=float(lr_decay),
            weight_decay=float(decay),
            eps=float(eps),
            maximize=self.maximize,
            grad_scale=None,
            found_inf=fused.found_inf(finite),
        )
        count = fused.counted(own["count"], finite)
        new = {**own, "sum": named(params, total), "count": count}
        return named(params, new_params), {**memory, self.name: new}
