"""Prodigy."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from fnloop.names.arguments import bounded
from fnloop.optim.base import Memory, Optimizer, Step, correction, counter, decayed, descent
from fnloop.schedules.ranges import Decay, NonNegative, Positive
from fnloop.trees.nodes import static, tree
from fnloop.values.tensors import Tensors


@tree
class prodigy(Optimizer):
    """Prodigy (Mishchenko & Defazio, 2023, algorithm 4): Adam that finds its learning rate.

    https://arxiv.org/abs/2306.06101. It estimates the distance `d` from the initial parameters to
    the solution, by which the learning rate is multiplied; ``"prodigy.d"`` is reported. As in the
    authors' implementation (``prodigyopt``), moments are not corrected for their bias by default.

    One estimate serves all parameters of one optimizer; complex ones count as pairs of numbers.

    Args:
        lr: Multiplies `d`. Leave it at 1, or give a schedule with a peak of 1, mostly a cosine.
        b1: Decay rate of the moving average of the gradient.
        b2: Decay rate of the moving average of the squared gradient.
        b3: Decay rate of the averages that `d` is estimated from; None for the root of `b2`.
        eps: Added to the denominator, times `d`.
        weight_decay: Each step subtracts ``d * lr * weight_decay * parameter``.
        decoupled: If not, weight decay is an L2 penalty, added to the gradient.
        d0: The estimate to begin with: small against the distance.
        d_coef: Multiplies the estimate. The first to tune, such as 0.5 or 2.
        growth: The most that `d` grows by in a step, as a factor, after it first has.
        bias_correction: Correct the bias of the moments.
        safeguard_warmup: Take the learning rate out of the denominator of the estimate: for a long
            warm-up.
        name: Key of its memory and prefix of its hyperparameters.

    Raises:
        ValueError: `d0` is not above 0, or `growth` is below 1.

    >>> params = Tensors({"w": torch.tensor([0.0])})  # the solution is at 5
    >>> optimizer = prodigy(d0=1e-3)
    >>> memory = optimizer.init(params)
    >>> for step in range(300):
    ...     params, memory = optimizer.apply(params.sub(5.0), memory, params, step, True)
    >>> float(memory["prodigy"]["d"]) > 1, bool((params["w"] - 5).abs() < 1)
    (True, True)
    """

    by_value = True
    lr: NonNegative = 1.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    b3: Annotated[float, bounded(0, 1)] | None = static(default=None)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    decoupled: bool = True
    d0: Annotated[float, bounded(0, above=True)] = static(default=1e-6)
    d_coef: Positive = 1.0
    growth: Annotated[float, bounded(1, math.inf)] = static(default=math.inf)
    bias_correction: bool = False
    safeguard_warmup: bool = False
    name: str = "prodigy"

    def init_state(self, params: Tensors) -> dict[str, Any]:
        count = counter(params)
        d = torch.full_like(count, self.d0, dtype=torch.float64)
        return {
            **{part: params.zeros() for part in ("mu", "nu", "s")},
            "start": params.wide().clone(),
            "numerator": torch.zeros_like(d),
            "d": d,
            "d_max": d.clone(),
            "count": count,
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        lr, b1, b2, eps, decay = self.at(step, "lr", "b1", "b2", "eps", "weight_decay")
        b3 = b2**0.5 if self.b3 is None else self.b3
        g = descent(grads, params, 0.0 if self.decoupled else decay)
        d, count = own["d"], own["count"] + 1
        rate = d * lr
        if self.bias_correction:
            rate = rate * correction(b2, count) ** 0.5 / correction(b1, count)
        mu = own["mu"].lerp(g.scale(d), 1 - b1)
        nu = own["nu"].lerp(g.mul(g).scale(d * d), 1 - b2)
        # Relative to d0, as its square would be denormal.
        size, towards = d / self.d0, own["start"].sub(params.wide())
        numerator = b3 * own["numerator"] + size * rate * g.dot(towards)
        s = own["s"].scale(b3).add(g.scale(size * (d if self.safeguard_warmup else rate)))
        new_d, d_max = self._estimate(own, numerator, s.dot(s.sign()), step)
        updates = mu.scale(-rate).div(nu.sqrt().add(eps * new_d))
        if self.decoupled:
            updates = decayed(updates, params, rate, decay)
        new = {"mu": mu, "nu": nu, "s": s, "start": own["start"], "numerator": numerator}
        own = {**own, **new, "d": new_d, "d_max": d_max, "count": count}
        return updates, {**memory, self.name: own}

    def _estimate(
        self, own: dict[str, Any], numerator: Tensor, denominator: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """The distance, and the largest so far."""
        (coef,) = self.at(step, "d_coef")
        d, moved = own["d"], denominator > 0
        found = torch.where(moved, coef * numerator / torch.where(moved, denominator, 1.0), d)
        largest = torch.maximum(own["d_max"], found)
        if self.growth == math.inf:
            return largest, largest
        # Growth is not limited as long as it has not begun.
        base = torch.where(d == self.d0, torch.maximum(d, found), d)
        return torch.minimum(largest, base * self.growth), largest

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return {f"{self.name}.d": memory[self.name]["d"]}
