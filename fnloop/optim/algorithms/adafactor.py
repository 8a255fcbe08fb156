"""Adafactor."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    counter,
    decayed,
    descent,
    named,
    values,
    wide,
)
from fnloop.trees.nodes import static, tree


@tree
class adafactor(Optimizer):
    """Factored second moments (Shazeer & Stern, 2018, algorithm 5); ``torch.optim.Adafactor``.

    As torch's: `lr` is the largest relative step size, and `eps1` bounds the second moment from
    below instead of being added to the squared gradient.

    Args:
        lr: Largest relative step size, and factor of the weight decay.
        beta2_decay: The second moment's decay at update t is ``1 - t ** beta2_decay``.
        eps1: Least root of the second moment; None is the machine epsilon of the parameter's dtype.
        eps2: Least root mean square of a parameter that its step is relative to.
        clip_threshold: Largest root mean square of the direction.
        weight_decay: Fraction of ``lr * parameter`` taken off each step.
        maximize: Go uphill.
        name: Of its memory and hyperparameters.

    >>> optimizer = adafactor()
    >>> memory = optimizer.init({"w": torch.ones(3, 4), "b": torch.ones(3)})["adafactor"]
    >>> memory["row"]["w"].shape, memory["column"]["w"].shape, memory["nu"]["b"].shape
    (torch.Size([3, 1]), torch.Size([1, 4]), torch.Size([3]))
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    lr: Any = 1e-2
    beta2_decay: Any = -0.8
    eps1: Any = static(default=None)
    eps2: Any = 1e-3
    clip_threshold: Any = 1.0
    weight_decay: Any = 0.0
    maximize: bool = False
    name: str = "adafactor"

    def memory(self, params: Tensors) -> dict[str, Any]:
        matrices = {name: p for name, p in params.items() if p.ndim > 1}
        vectors = {name: p for name, p in params.items() if p.ndim <= 1}

        def zeros(p: Tensor, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=wide(p.dtype), device=p.device)

        return {
            "row": {n: zeros(p, *p.shape[:-1], 1) for n, p in matrices.items()},
            "column": {n: zeros(p, *p.shape[:-2], 1, p.shape[-1]) for n, p in matrices.items()},
            "nu": {n: zeros(p, *p.shape) for n, p in vectors.items()},
            "count": counter(params),
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, power, eps2, threshold, decay = (
            at(v, step)
            for v in (self.lr, self.beta2_decay, self.eps2, self.clip_threshold, self.weight_decay)
        )
        count = own["count"] + 1
        weight = count.double() ** power
        relative = (count.double() ** -0.5).clamp(max=lr)
        new: dict[str, Any] = {**own, "row": {}, "column": {}, "nu": {}, "count": count}
        updates: list[Tensor] = []
        g = descent(grads, params, maximize=self.maximize)
        for name, grad, p in zip(params, g, values(params), strict=True):
            eps1 = torch.finfo(params[name].dtype).eps if self.eps1 is None else self.eps1
            square = grad * grad
            if p.ndim > 1:
                row = _mix(own["row"][name], square.mean(-1, keepdim=True), weight)
                column = _mix(own["column"][name], square.mean(-2, keepdim=True), weight)
                new["row"][name], new["column"][name] = row, column
                second = row @ column / row.mean(-2, keepdim=True).clamp(min=eps1)
            else:
                second = new["nu"][name] = _mix(own["nu"][name], square, weight)
            direction = grad * second.clamp(min=eps1**2).rsqrt()
            size = _rms(p).clamp(min=eps2) * relative.to(p.dtype)
            updates.append(-size / (_rms(direction) / threshold).clamp(min=1.0) * direction)
        updates = decayed(updates, params, lr, decay)
        return named(params, updates), {**memory, self.name: new}


def _mix(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(old, new, weight.to(old.dtype))


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / x.numel() ** 0.5
