"""``hessian_product`` and ``sharpness``: the curvature of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop._torch import slopes
from fnloop.names.keywords import explained
from fnloop.stages.base import GradStage
from fnloop.stages.unsharded import BY_FORWARD_MODE, refuse_sharded
from fnloop.values.counts import as_count
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@explained
def hessian_product(
    stage: GradStage, state: State, batch: Any, vector: Tensors | Mapping[str, Tensor]
) -> Tensors:
    """The Hessian of the mean loss times a vector, without the Hessian (Pearlmutter, 1994).

    Forward mode through the backward pass: two to three times the work of a gradient, at the masks
    of dropout that it has. Buffers that the model changes are dropped.

    Args:
        stage: A gradient stage, such as ``fl.grad(loss)``.
        state: The state.
        batch: The batch.
        vector: By the names of the parameters that have a gradient.

    Returns:
        By the same names.

    Raises:
        ValueError: `stage` is sharded.

    >>> import torch, fnloop as fl
    >>> gradients = fl.grad(lambda model, batch: (batch * model.weight.square()).sum() / 2)
    >>> state, curvature = gradients.init(torch.nn.Linear(2, 1)), torch.tensor([[1.0, 3.0]])
    >>> vector = {"weight": torch.tensor([[2.0, 2.0]])}
    >>> hessian_product(gradients, state, curvature, vector)["weight"]
    tensor([[2., 6.]])
    """
    refuse_sharded(stage, "hessian_product", BY_FORWARD_MODE)
    slopes.prepare()
    given = vector if isinstance(vector, Tensors) else Tensors(vector)
    params = state.params.select(given)

    def gradient(params: Tensors) -> Tensors:
        there = state.replace(params=state.params.updated(params))
        return stage(there, batch)[1].mean.select(given)

    found: Any = torch.func.jvp(gradient, (params,), (given.cast(params),))
    return found[1]


@explained
def sharpness(stage: GradStage, state: State, batch: Any, steps: int = 20) -> Tensor:
    """The largest eigenvalue of the Hessian of the mean loss, by power iteration.

    The one that is largest in size, with its sign. Gradient descent at the learning rate ``lr`` is
    stable below ``2 / lr`` (Cohen et al., 2021, https://arxiv.org/abs/2103.00065). The error falls
    by the square of the ratio of the two largest eigenvalues with each step.

    Args:
        stage: A gradient stage, such as ``fl.grad(loss)``.
        state: The state; its key and calls decide where the iteration starts.
        batch: The batch.
        steps: Number of products with the Hessian, at least 1.

    Returns:
        float64[].

    Raises:
        TypeError: `steps` is not a whole number.
        ValueError: `steps` is below 1, or `stage` is sharded.

    >>> import torch, fnloop as fl
    >>> gradients = fl.grad(lambda model, batch: (batch * model.weight.square()).sum() / 2)
    >>> state = gradients.init(torch.nn.Linear(3, 1, bias=False))
    >>> print(f"{sharpness(gradients, state, torch.tensor([[1.0, -4.0, 2.0]])):.3f}")
    -4.000
    """
    steps = as_count(steps, "sharpness(steps=)", 1)
    reached = stage(state, batch)[1].mean
    with randomness(state, "sharpness"):
        vector = reached.wide().map_named(normal_like)
    value = vector.norm()
    for _ in range(steps):
        vector = vector.scale(1 / (vector.norm() + 1e-30))
        product = hessian_product(stage, state, batch, vector).wide()
        value = vector.dot(product)
        vector = product
    return value
