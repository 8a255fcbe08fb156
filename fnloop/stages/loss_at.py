"""``loss_at``: the loss at other parameters, with the same randomness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fnloop.stages.base import GradStage
from fnloop.values.grads import Grads
from fnloop.values.metrics import Mean, as_tensor
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def loss_at(
    stage: GradStage, state: State, batch: Any, params: Tensors | Mapping[str, Tensor] | None = None
) -> Tensor:
    """The mean loss of a gradient stage at other parameters, without a backward pass.

    For stages that compare values of the loss: a line search, estimates from differences, a test
    of a step before it is taken. Randomness is a function of the state's key and calls and of the
    micro-batch, so masks are those of the gradient. Micro-batches, precision and ranks are those of
    the stage. Buffers that the model changes are dropped. Stages inside see a gradient of no
    parameter: one that would go uphill by it stays where it is.

    Args:
        stage: A gradient stage, such as the field ``inner`` of a stage around one.
        state: The state that the stage was called with, not the one that ``inner`` returned.
        batch: The batch.
        params: Where; all parameters, or some of them by name. By default those of the state.

    Returns:
        float64[]; nan for a batch of weight zero.

    Raises:
        ValueError: The stage reports no loss.

    >>> import torch, fnloop as fl
    >>> gradients = fl.grad(lambda model, batch: model(batch).square().mean())
    >>> state = gradients.init(torch.nn.Linear(1, 1, bias=False))
    >>> loss_at(gradients, state, torch.ones(4, 1), {"weight": torch.tensor([[3.0]])})
    tensor(9., dtype=torch.float64)
    """
    if params is not None:
        given = params if isinstance(params, Tensors) else Tensors(params)
        state = state.replace(params=state.params.updated(given))
    return loss_of(stage(state.within(differentiates=False), batch)[1])


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
            "fl.grad reports it; a stage of your own has to keep it: grads.replace(metrics={"
            '**grads.metrics, "loss": fl.Mean(total, weight)}).'
        )
    return as_tensor(loss.value(), grads.weight.device)
