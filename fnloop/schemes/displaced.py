"""The gradient of a stage at another place than the parameters of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fnloop.stages.base import GradStage
from fnloop.values.grads import Grads
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def gradient_elsewhere(
    inner: GradStage, state: State, x: Any, place: Callable[[Tensors, Tensors], Tensors]
) -> tuple[State, Grads]:
    """The gradient of a stage at a place that is found by its gradient at the parameters.

    Both have the same masks of dropout. Buffers and metrics are those at the parameters.

    Args:
        inner: The gradient stage.
        state: The state that the stage around it was called with.
        x: The batch.
        place: From the parameters that have a gradient, and that, to where the other is taken.

    Returns:
        What the stage around it returns.
    """
    here, grads = inner(state, x)
    if not grads.mean:  # the loss alone was asked for, or it reaches nothing
        return here, grads
    there = state.params.updated(place(state.params.select(grads.mean), grads.mean))
    after, found = inner(state.replace(params=there), x)
    # Memory inside, such as a loss scale, follows the gradient that is used: it is not finite
    # either, where that at the parameters is not.
    after = after.replace(params=state.params, buffers=here.buffers)
    return after, found.replace(metrics=grads.metrics)
