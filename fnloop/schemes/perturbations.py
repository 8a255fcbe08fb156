"""``evolution``: an estimate of the gradient from losses at random places nearby."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import Positive
from fnloop.stages.base import GradStage, Kind
from fnloop.stages.loss_at import loss_of
from fnloop.stages.unsharded import refuse_sharded
from fnloop.trees.nodes import tree, tree_map
from fnloop.values.counts import as_count
from fnloop.values.grads import Grads
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class Evolution(GradStage):
    """The stage that `evolution` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "evolution"
    repeats: ClassVar[bool] = True
    inner: Any
    std: Any = 0.01
    draws: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "computes all its draws in one vmapped pass, in which ranks exchange nothing"
        refuse_sharded(self.inner, "evolution", why)

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        forward = state.within(differentiates=False)
        after, grads = self.inner(forward, x)
        after = after.replace(context=state.context)
        if not state.context.differentiates:
            return after, grads
        (std,) = self.at(state, "std")
        params = state.params.select(self.trained(state))

        def loss(buffers: Tensors, place: Tensors) -> Tensor:
            there = forward.replace(params=state.params.updated(place), buffers=buffers)
            return loss_of(self.inner(there, x)[1])

        def one(buffers: Tensors, place: Tensors) -> Tensors:
            with randomness(state, "evolution"):
                way = place.wide().map_named(normal_like)
            ahead, behind = (place.add(way.scale(sign * std)) for sign in (1, -1))
            # Both have the same masks, as each begins its random numbers anew.
            slope = (loss(buffers, ahead) - loss(buffers, behind)) / (2 * std)
            return way.scale(slope)

        # A draw has buffers of its own, for BatchNorm writes to them.
        own = tree_map(lambda b: b.expand(self.draws, *b.shape), (state.buffers, params))
        found: Any = torch.func.vmap(one, randomness="different")(*own)
        return after, grads.replace(mean=tree_map(lambda g: g.mean(0), found))


@explained
def evolution(std: Positive = 0.01, draws: int = 16) -> Callable[[GradStage], Evolution]:
    """Evolution strategies: a gradient from the losses at random places, no backward pass.

    Salimans et al., 2017 (https://arxiv.org/abs/1703.03864, algorithm 1 with antithetic draws,
    section 2.1): the mean over normal directions ``v`` of ``(loss(w + std * v) - loss(w - std *
    v)) / (2 * std) * v``. It is an unbiased estimate of the gradient of the loss after smoothing by
    a normal distribution, so the loss may be anything that has a value: it need not be
    differentiable. (Their ranks in place of losses are left out: they are no gradient.)

    Goes directly behind `fl.grad` (or `fl.accumulate`), whose loss it evaluates ``2 * draws + 1``
    times, all draws in one vmapped pass with the memory of as many forward passes. Each draw has
    its own dropout masks, the same at both places. The loss and metrics reported, and BatchNorm's
    statistics, are those at the parameters. The variance grows with the number of parameters and
    falls with `draws`. All trained parameters get a gradient. Cannot be sharded.

    Args:
        std: Deviation of the places from the parameters: a number, tensor or schedule.
        draws: Number of directions.

    Raises:
        TypeError: `draws` is not a whole number.
        ValueError: `std` is not above 0, or `draws` below 1; or `inner` is sharded, or, at the
            call, reports no loss.

    >>> import fnloop as fl
    >>> loss = lambda model, x: (model.weight > 0).double().sum()  # a step at 0
    >>> estimate = fl.pipe(loss, fl.grad, evolution(std=1.0, draws=1000))
    >>> state = estimate.init(torch.nn.Linear(1, 1, bias=False))
    >>> state = state.replace(params={"weight": torch.zeros(1, 1)})
    >>> _, grads = estimate(state, torch.ones(1))
    >>> print(f"{float(grads.mean['weight']):.1f}")  # smoothed, the density of a normal at 0
    0.4
    """
    count = as_count(draws, "evolution(draws=...)", 1)
    return functools.partial(Evolution, std=std, draws=count)
