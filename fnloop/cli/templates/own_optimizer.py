"""``new_optimizer``: say in a line what it does, and where it is from."""

from __future__ import annotations

from typing import Any

import fnloop as fl


@fl.tree
class new_optimizer(fl.optim.Optimizer):
    """Gradient descent along the running mean of the gradients.

    Its fields are its hyperparameters: numbers, tensors or schedules.

    Args:
        lr: Learning rate.
        momentum: Decay of the running mean, from 0 to 1.
        name: Key of its memory, and prefix of its hyperparameters.
    """

    lr: Any = 1e-2
    momentum: Any = 0.9
    name: str = "new_optimizer"

    def init_state(self, params: fl.Tensors) -> dict[str, Any]:
        return {"mean": params.zeros()}

    def update(
        self, grads: fl.Tensors, memory: dict[str, Any], params: fl.Tensors, step: Any
    ) -> tuple[fl.Tensors, dict[str, Any]]:
        """The updates, which are added to the parameters, and the new memory."""
        lr, momentum = self.at(step, "lr", "momentum")
        mean = memory[self.name]["mean"].lerp(grads, 1 - momentum)
        return mean.scale(-lr), {**memory, self.name: {"mean": mean}}
