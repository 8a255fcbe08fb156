"""``dp_sgd``: gradients of single examples, clipped and with noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import NonNegative, Positive
from fnloop.stages.base import GradStage, Kind
from fnloop.stages.each_example import per_example, refuse_shared, summed, that_add
from fnloop.trees.nodes import tree
from fnloop.values.grads import Grads
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class DpSgd(GradStage):
    """The stage that `dp_sgd` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "dp_sgd"
    is_for_once: ClassVar[bool] = True
    inner: Any
    clip: Any
    noise: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_shared(self.inner, "dp_sgd")

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        if not state.context.differentiates:
            return self.inner(state, x)
        clip, noise = self.at(state, "clip", "noise")

        def clipped(grads: Grads) -> tuple[Tensors, Tensor, dict[str, Any]]:
            mean, counts = grads.mean.wide(), grads.weight > 0
            mean = mean.scale((clip / (mean.norm() + 1e-12)).clamp(max=1.0))
            return mean.where(counts, mean.zeros()), counts, that_add(grads.metrics)

        found = per_example(self.inner, state, x, clipped, "dp_sgd")
        total, examples, metrics = summed(found)
        with randomness(state, "dp_sgd"):
            total = total.map_named(lambda g: g + noise * clip * normal_like(g))
        mean = total.scale(1 / examples.clamp(min=1).to(torch.float64))
        finite = torch.ones_like(examples, dtype=torch.bool)
        return state, Grads(mean, examples, finite, metrics)


@explained
def dp_sgd(clip: Positive, noise: NonNegative) -> Callable[[GradStage], DpSgd]:
    """Private gradients (DP-SGD): each example's is clipped, and noise is added to their sum.

    Abadi et al., 2016 (https://arxiv.org/abs/1607.00133, algorithm 1): with ``g_i`` the gradient of
    the loss of example ``i`` alone, ``(sum(g_i * min(1, clip / ||g_i||)) + noise * clip * normal) /
    examples``. Examples of weight zero do not count.

    Goes directly behind `fl.grad`; all examples are computed in one vmapped pass, which needs the
    memory of a gradient for each; compiled, not of linear layers, whose norms and sums follow from
    what goes in and what comes back. Each has a dropout mask of its own. Not inside of
    `fl.accumulate` and of what else computes the gradient several times, which would add noise each
    time. Metrics that are `fl.Mean` or `fl.Sum` are reported; others are left out. Cannot be
    sharded. Buffers stay as they are.

    What privacy a run has follows from `noise`, the share of examples in a batch and the number of
    steps: `fl.schemes.epsilon`.

    Args:
        clip: The largest norm of an example's gradient: a number, tensor or schedule.
        noise: Standard deviation of the noise in the sum, in units of `clip`.

    Raises:
        ValueError: `inner` is sharded or keeps memory; or, at the call, the model has BatchNorm
            with running statistics, or the batch is not made of tensors with one leading dimension.

    >>> import torch, fnloop as fl
    >>> gradients = fl.pipe(lambda m, x: m(x).mean(), fl.grad, dp_sgd(clip=1.0, noise=0.0))
    >>> state = gradients.init(torch.nn.Linear(1, 1, bias=False))
    >>> _, grads = gradients(state, torch.tensor([[0.5], [100.0]]))  # which are the gradients
    >>> grads.mean["weight"], int(grads.weight)
    (tensor([[0.7500]]), 2)
    """
    return functools.partial(DpSgd, clip=clip, noise=noise)
