"""LAMB."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fnloop.optim.base import Memory, Optimizer, Step, correction, counter, is_zero
from fnloop.schedules.ranges import Decay, NonNegative
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class lamb(Optimizer):
    """LAMB (You et al., 2020, algorithm 2, with phi the identity).

    The update of each parameter is ``lr`` times Adam's direction, rescaled to the parameter's norm.
    It is not rescaled if one of the two norms is zero.

    Args:
        lr: Learning rate.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient.
        eps: Added to the denominator.
        weight_decay: Adds ``weight_decay * parameter`` to the direction before rescaling.
        name: Key of its memory and prefix of its hyperparameters.

    >>> optimizer = lamb(0.1)
    >>> params = Tensors({"w": torch.tensor([3.0, 4.0])})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> float(updates["w"].norm() / params["w"].norm())
    0.10000000...
    """

    by_value = True
    lr: NonNegative = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 0.01
    name: str = "lamb"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        return {"mu": params.zeros(), "nu": params.zeros(), "count": counter(params)}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = self.at(step, "lr", "b1", "b2", "eps", "weight_decay")
        g, p = grads.wide(), params.wide()
        count = own["count"] + 1
        mu, nu = own["mu"].lerp(g, 1 - b1), own["nu"].lerp(g.mul(g), 1 - b2)
        root = nu.div(correction(b2, count)).sqrt()
        direction = mu.div(correction(b1, count)).div(root.add(eps))
        if not is_zero(decay):
            direction = direction.add(p.scale(decay))
        updates = direction.map_named(_trusted, p).scale(-lr)
        return updates, {**memory, self.name: {**own, "mu": mu, "nu": nu, "count": count}}


def _trusted(direction: Tensor, param: Tensor) -> Tensor:
    """Rescale the direction to the norm of the parameter."""
    size, length = torch.linalg.vector_norm(param), torch.linalg.vector_norm(direction)
    usable = (size > 0) & (length > 0)
    return direction * torch.where(usable, size / torch.where(usable, length, 1.0), 1.0)
