"""LAMB."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop.optim.base import (
    Memory,
    Optimizer,
    Step,
    Tensors,
    at,
    correction,
    counter,
    is_zero,
    named,
    values,
    zeros_like,
)
from fnloop.trees.nodes import tree


@tree
class lamb(Optimizer):
    """Layer-wise adaptive moments (You et al., 2020, algorithm 2, with the identity for phi).

    Each parameter moves by ``lr`` times its own norm, in Adam's direction; by ``lr`` times the
    direction itself where one of the two is zero.

    Args:
        lr: Learning rate.
        b1: Decay of the gradient's running mean.
        b2: Decay of the squared gradient's running mean.
        eps: Added to the denominator.
        weight_decay: Fraction of the parameter added to the direction.
        name: Of its memory and hyperparameters.

    >>> optimizer = lamb(0.1)
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> float(updates["w"].norm() / params["w"].norm())
    0.10000000...
    """

    reported: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    lr: Any = 1e-3
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-6
    weight_decay: Any = 0.01
    name: str = "lamb"

    def memory(self, params: Tensors) -> dict[str, Any]:
        return {"mu": zeros_like(params), "nu": zeros_like(params), "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = (
            at(v, step) for v in (self.lr, self.b1, self.b2, self.eps, self.weight_decay)
        )
        g, p = values(grads), values(params)
        count = own["count"] + 1
        mu = foreach.lerp(list(own["mu"].values()), g, 1 - b1)
        nu = foreach.lerp(list(own["nu"].values()), foreach.mul(g, g), 1 - b2)
        root = foreach.sqrt(foreach.div(nu, correction(b2, count)))
        direction = foreach.div(foreach.div(mu, correction(b1, count)), foreach.add(root, eps))
        if not is_zero(decay):
            direction = foreach.add(direction, foreach.mul(p, decay))
        ratios = [_trust_ratio(x, d) for x, d in zip(p, direction, strict=True)]
        updates = foreach.mul(foreach.mul(direction, ratios), -lr)
        new = {**own, "mu": named(params, mu), "nu": named(params, nu), "count": count}
        return named(params, updates), {**memory, self.name: new}


def _trust_ratio(param: Tensor, direction: Tensor) -> Tensor:
    size, length = torch.linalg.vector_norm(param), torch.linalg.vector_norm(direction)
    usable = (size > 0) & (length > 0)
    return torch.where(usable, size / torch.where(usable, length, 1.0), 1.0)
