"""``forward_gradient``: an unbiased estimate of the gradient, without a backward pass."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch import slopes
from fnloop.stages.base import GradStage, Kind
from fnloop.stages.loss_at import loss_of
from fnloop.stages.unsharded import BY_FORWARD_MODE, refuse_sharded
from fnloop.trees.nodes import tree
from fnloop.values.grads import Grads
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class ForwardGradient(GradStage):
    """The stage that `forward_gradient` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "forward_gradient"
    inner: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        slopes.prepare()
        refuse_sharded(self.inner, "forward_gradient", BY_FORWARD_MODE)

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        if not state.context.differentiates:
            return self.inner(state, x)
        params = state.params.select(self.trained(state))
        with randomness(state, "forward_gradient"):
            way = params.map_named(normal_like)

        def loss(params: Tensors) -> tuple[Tensor, Any]:
            there = state.replace(params=state.params.updated(params))
            after, grads = self.inner(there.within(differentiates=False), x)
            return loss_of(grads), (after.buffers, grads.weight, grads.finite, grads.metrics)

        found: Any = torch.func.jvp(loss, (params,), (way,), has_aux=True)
        _, slope, (buffers, weight, finite, metrics) = found
        mean = way.wide().scale(slope)
        return state.replace(buffers=buffers), Grads(mean, weight, finite, metrics)


def forward_gradient(inner: GradStage) -> ForwardGradient:
    """Forward gradient: the slope along a random direction, times that direction.

    Baydin et al., 2022 (https://arxiv.org/abs/2202.08587, equation 4): ``(grad @ v) * v`` with
    ``v`` normal, whose mean is the gradient. The slope is found by forward mode together with the
    loss, so that nothing is kept for a backward pass. Its variance grows with the number of
    parameters; learning rates have to be smaller by about as much.

    Goes directly behind `fl.grad`, without brackets. Around `fl.accumulate` all micro-batches have
    one direction; inside of it each has its own, which has less variance. All trained parameters
    get a gradient, also those that the loss does not reach. Cannot be sharded.

    Args:
        inner: The gradient stage; its loss is what is differentiated.

    Raises:
        ValueError: `inner` is sharded, or, at the call, reports no loss.
        NotImplementedError: At the call, the model has an operation without forward mode.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model.weight.square().sum() / 2
    >>> exact = fl.pipe(loss, fl.grad)
    >>> estimate = fl.pipe(loss, fl.grad, forward_gradient)
    >>> state = exact.init(torch.nn.Linear(1, 1, bias=False))
    >>> g, e = (stage(state, torch.ones(1))[1].mean["weight"] for stage in (exact, estimate))
    >>> bool(torch.sign(g) == torch.sign(e))  # it never points uphill
    True
    """
    return ForwardGradient(inner)
