"""``hypergradient``: a learning rate that descends along its own gradient."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.optim.around import Around
from fnloop.optim.base import Memory, Optimizer, Step, check_one_gradient
from fnloop.optim.pieces import updates_of
from fnloop.schedules.base import at
from fnloop.schedules.ranges import NonNegative
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.tensors import Tensors


@tree
class hypergradient(Around):
    """Hypergradient descent (Baydin et al., 2018): the learning rate is learned while training.

    https://arxiv.org/abs/1703.04782, algorithms 4 to 6: around `sgd` it is SGD-HD (with Nesterov
    momentum SGDN-HD), around `adam` Adam-HD. The derivative of the loss with respect to the rate of
    the last step is the inner product of the gradient now with the last update, divided by that
    rate; so neither a second evaluation nor a second derivative is needed::

        slope = gradient . (last update / last lr)
        lr = lr - rate * slope
        parameters = parameters + update of the optimizer at lr

    It begins at the optimizer's own learning rate. A schedule of that one, and `fl.scale`, multiply
    what has been learned. The rate in force is reported as ``"hypergradient.lr"``. Nothing keeps it
    from becoming negative if `rate` is too large. The derivative is right for every optimizer whose
    update is proportional to its learning rate, which `adafactor` and `schedule_free`, for two, are
    not. Keeps the last update, of the size of the parameters.

    Args:
        optimizer: Such as ``fl.optim.sgd(1e-3)`` or ``fl.optim.adam(1e-4)``, or a chain with one.
        rate: The learning rate of the learning rate, a number, tensor or schedule. In the paper
            1e-3 for SGD, where the slope is of the size of a squared norm of gradients, and 1e-7
            for Adam, where it is of that of the sum of their absolute values.
        name: Key of its memory.

    Raises:
        TypeError: `optimizer` makes no updates, or evaluates the loss itself (`lbfgs`).
        ValueError: It has no learning rate, or several.

    >>> from fnloop.optim import sgd
    >>> params = Tensors({"w": torch.tensor([4.0])})  # of the loss w**2 / 2
    >>> optimizer = hypergradient(sgd(0.25), rate=0.0625)
    >>> memory = optimizer.init(params)
    >>> for step in range(3):
    ...     params, memory = optimizer.apply(params, memory, params, step, True)
    ...     print(float(memory["hypergradient"]["lr"]), float(params["w"]))
    0.25 3.0
    1.0 0.0
    1.0 0.0
    """

    mixes: ClassVar[bool] = True

    optimizer: Any
    rate: NonNegative
    name: str = "hypergradient"

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer) or self.optimizer.makes != "updates":
            raise TypeError(
                "hypergradient takes an optimizer that makes updates, such as fl.optim.sgd(1e-3); "
                f"got {short(self.optimizer)}."
            )
        check_one_gradient("hypergradient", [self.optimizer])
        names = [n for n in self.optimizer.hyperparameters() if n.endswith(".lr")]
        if len(names) != 1:
            raise ValueError(
                f"hypergradient learns one learning rate, and {short(self.optimizer)} has "
                f"{', '.join(names) or 'none'}. For a rate for each part, put it inside: "
                'fl.optim.by_label({"a": hypergradient(...), "b": hypergradient(...)}, labels).'
            )

    def init_state(self, params: Tensors) -> dict[str, Any]:
        zero = torch.zeros((), dtype=torch.float64, device=params.device)
        return {"direction": params.zeros(), "factor": zero + 1, "lr": zero}

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        own = memory[self.name]
        (rate,) = self.at(step, "rate")
        ((name, begun),) = self._begun().items()
        begun = torch.as_tensor(at(begun, step), dtype=torch.float64, device=grads.device)
        slope = grads.wide().dot(own["direction"])
        factor = own["factor"] - rate * _quotient(slope.double(), begun)
        lr = begun * factor
        optimizer = self.optimizer.with_values({name: lr})
        made, memory = updates_of(optimizer, grads, memory, params, step)
        direction = made.scale(_quotient(torch.ones_like(lr), lr))
        return made, {**memory, self.name: {"direction": direction, "factor": factor, "lr": lr}}

    def _begun(self) -> dict[str, Any]:
        """The learning rate to begin with, by its name."""
        named = self.optimizer.hyperparameters().items()
        return {name: value for name, value in named if name.endswith(".lr")}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return {f"{self.name}.lr": memory[self.name]["lr"], **super().measured(memory)}


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, and zero where `b` is: at a rate of zero, in a warm-up, nothing is learned."""
    there = b != 0
    return torch.where(there, a / torch.where(there, b, 1.0), 0.0)
