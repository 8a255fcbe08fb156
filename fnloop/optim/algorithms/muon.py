"""Muon."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from fnloop.optim.base import Memory, Optimizer, Step, decayed, refuse_complex
from fnloop.schedules.ranges import NonNegative
from fnloop.trees.nodes import static, tree
from fnloop.values.counts import as_count
from fnloop.values.tensors import Tensors


@tree
class muon(Optimizer):
    """Muon (Jordan et al., 2024); ``torch.optim.Muon``.

    Orthogonalizes the momentum by Newton-Schulz iterations, in bfloat16. For the weight matrices of
    hidden layers only; use another optimizer for embeddings, heads, biases and gains:
    ``fl.optim.by_label({"matrix": fl.optim.muon(), "rest": fl.optim.adamw()}, labels)``.

    Args:
        lr: Learning rate.
        weight_decay: Decoupled; each step subtracts ``lr * weight_decay * parameter``.
        momentum: Decay rate of the moving average of the gradient.
        nesterov: Use Nesterov momentum.
        ns_coefficients: Coefficients of the quintic Newton-Schulz iteration.
        ns_steps: Number of iterations.
        eps: Lower bound of the norm that the iteration divides by.
        adjust_lr: Factor on the learning rate by shape ``(rows, columns)``. "original":
            ``sqrt(max(1, rows / columns))``. "match_rms_adamw": ``0.2 * sqrt(max(rows, columns))``
            (Liu et al., 2025, eq. 4), which allows learning rates tuned for AdamW.
        name: Key of its memory and prefix of its hyperparameters.

    Raises:
        TypeError: At `init`, a parameter is complex.
        ValueError: `adjust_lr` is unknown; or, at `init`, a parameter is not a matrix.

    >>> optimizer = muon(0.1, weight_decay=0.0)
    >>> params = Tensors({"w": torch.diag(torch.tensor([1.0, 100.0]))})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> bool((torch.diag(updates["w"]) / -0.1 - 1).abs().max() < 0.5)
    True
    """

    by_value = True
    lr: NonNegative = 1e-3
    weight_decay: NonNegative = 0.1
    momentum: NonNegative = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = static(default=(3.4445, -4.7750, 2.0315))
    ns_steps: int = 5
    eps: NonNegative = 1e-7
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    name: str = "muon"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ns_steps", as_count(self.ns_steps, "muon(ns_steps=...)"))
        if len(self.ns_coefficients) != 3:
            raise ValueError(
                f"muon(ns_coefficients=...) takes three numbers, got {self.ns_coefficients!r}."
            )

    def init_state(self, params: Tensors) -> dict[str, Any]:
        refuse_complex("muon", params)
        others = [f"{name} {tuple(p.shape)}" for name, p in params.items() if p.ndim != 2]
        if others:
            raise ValueError(
                f"muon takes matrices only; got {', '.join(others)}. Use another optimizer for "
                'them: by_label({"matrix": muon(), "rest": adamw()}, lambda name, p: "matrix" '
                'if p.ndim == 2 else "rest").'
            )
        return {"momentum": params.zeros()}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, decay, momentum, eps = self.at(step, "lr", "weight_decay", "momentum", "eps")
        g = grads.wide()
        buffer = own["momentum"].lerp(g, 1 - momentum)
        ahead = g.lerp(buffer, momentum) if self.nesterov else buffer
        updates = ahead.map_named(
            lambda x: self._orthogonal(x, eps).to(x.dtype) * (-lr * self._factor(*x.shape))
        )
        updates = decayed(updates, params, lr, decay)
        return updates, {**memory, self.name: {**own, "momentum": buffer}}

    def _orthogonal(self, x: Tensor, eps: Any) -> Tensor:
        a, b, c = self.ns_coefficients
        tall = x.shape[0] > x.shape[1]
        x = x.bfloat16().T if tall else x.bfloat16()
        x = x / x.norm().clamp(min=eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x

    def _factor(self, rows: int, columns: int) -> float:
        if self.adjust_lr == "original":
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))
