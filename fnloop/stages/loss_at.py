"""``loss_at``: the loss at other parameters, with the same randomness."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fnloop.values.grads import Grads
from fnloop.values.metrics import Mean, as_tensor


def loss_of(grads: Grads) -> Tensor:
    """The mean loss that a gradient stage reports: float64[].

    Raises:
        ValueError: It reports none.
    """
    loss = grads.metrics.get("loss")
    if not isinstance(loss, Mean):
        raise ValueError(
            "What evaluates the loss several times in a step, such as fl.optim.lbfgs, compares its "
            'values, and the gradient stage reports none: grads.metrics has no fl.Mean "loss". '
            'fl.grad reports it; a stage of your own has to keep it: grads.replace(metrics={'
            '**grads.metrics, "loss": fl.Mean(total, weight)}).'
        )
    return as_tensor(loss.value(), grads.weight.device)
