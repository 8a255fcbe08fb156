"""``schedule_free``: an average of the parameters takes the place of a schedule."""

from __future__ import annotations

from typing import Any

import torch

from fnloop.optim.around import Around
from fnloop.optim.base import Memory, Optimizer, Step, check_one_gradient, counter
from fnloop.optim.pieces import updates_of
from fnloop.schedules.base import at
from fnloop.schedules.ranges import NonNegative, Share
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.tensors import Tensors


@tree
class schedule_free(Around):
    """Schedule-free learning (Defazio et al., 2024): no end of the run need be known.

    https://arxiv.org/abs/2405.15682, equations 2 to 4. Around an optimizer without momentum. It
    moves a sequence z, whose weighted mean x is what is trained. The gradient is taken in between,
    at y, and the state's parameters are y::

        z = z + update(gradient at y)
        x = x + c * (z - x)             # c: this step's share of all weights
        y = beta * x + (1 - beta) * z

    *Evaluate x*: ``fl.evaluate(..., params="schedule_free")``, and so for `fl.validate`,
    `fl.predict` and `fl.to_module`. Where the model has BatchNorm it needs statistics of its own:
    `fl.refresh_batchnorm`. No schedule but a warm-up (`fl.schedules.linear`), which the paper
    advises. Weight decay is that of y. x and z take twice the memory of the parameters, float32 for
    half precision.

    Args:
        optimizer: It replaces the momentum by `beta`: ``fl.optim.adamw(2.5e-3, b1=0.0)`` or
            ``fl.optim.sgd(1.0)``. It may be a chain.
        beta: Where between z (0) and x (1) the gradient is taken.
        power: A step weighs the largest learning rate so far to this power.
        r: And its number to this one.
        name: Key of its memory, and what `params=` takes.

    Raises:
        TypeError: `optimizer` makes no updates, or evaluates the loss itself (`lbfgs`).
        ValueError: `optimizer` has a momentum.

    >>> from fnloop.optim import sgd
    >>> params = Tensors({"w": torch.zeros(1)})
    >>> optimizer, gradient = schedule_free(sgd(1.0), beta=0.5), Tensors({"w": torch.ones(1)})
    >>> memory = optimizer.init(params)
    >>> for step in range(3):
    ...     params, memory = optimizer.apply(gradient, memory, params, step, True)
    >>> own = memory["schedule_free"]
    >>> float(own["z"]["w"]), float(own["average"]["w"]), float(params["w"])
    (-3.0, -2.0, -2.5)
    """

    optimizer: Any
    beta: Share = 0.9
    power: NonNegative = 2.0
    r: NonNegative = 0.0
    name: str = "schedule_free"

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer) or self.optimizer.makes != "updates":
            raise TypeError(
                "schedule_free takes an optimizer that makes updates, such as "
                f"fl.optim.adamw(2.5e-3, b1=0.0) or fl.optim.sgd(1.0); got {short(self.optimizer)}."
                " What transforms gradients stands before it, in fl.optim.chain."
            )
        check_one_gradient("schedule_free", [self.optimizer])
        for part in getattr(self.optimizer, "optimizers", (self.optimizer,)):
            for field in ("b1", "momentum"):
                value = getattr(part, field, None)
                if isinstance(value, (int, float)) and value:
                    raise ValueError(
                        f"schedule_free has a momentum of its own, beta, in place of that of the "
                        f"optimizer in it, and {short(part)} has {field}={value}. Switch that off: "
                        f"fl.optim.{type(part).__name__}(..., {field}=0.0)."
                    )

    @property
    def mixes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.optimizer.mixes

    def init_state(self, params: Tensors) -> dict[str, Any]:
        count = counter(params)
        return {
            "z": params.wide().clone(),
            "average": params.wide().clone(),
            "largest": torch.zeros_like(count, dtype=torch.float64),
            "total": torch.zeros_like(count, dtype=torch.float64),
            "count": count,
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        made, memory = updates_of(self.optimizer, grads, memory, params, step)
        own = memory[self.name]
        beta, power, r = self.at(step, "beta", "power", "r")
        largest, count = own["largest"], own["count"] + 1
        for rate in self._rates(step):
            largest = largest.clamp(min=rate)
        weight = largest**power * count.double() ** r
        total = own["total"] + weight
        z = own["z"].add(made)
        # A warm-up begins at a rate of zero.
        x = own["average"].lerp(z, weight / torch.where(total > 0, total, 1.0))
        new = {"z": z, "average": x, "largest": largest, "total": total, "count": count}
        return z.lerp(x, beta).sub(params.wide()), {**memory, self.name: new}

    def _rates(self, step: Step) -> list[Any]:
        named = self.optimizer.hyperparameters().items()
        return [at(value, step) for name, value in named if name.endswith(".lr")] or [1.0]
