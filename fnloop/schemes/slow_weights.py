"""``lookahead``: slow weights that follow the fast ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import Share
from fnloop.stages.base import Kind, StepStage
from fnloop.trees.nodes import tree
from fnloop.values.choice import both, stepped
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class Lookahead(StepStage):
    """The stage that `lookahead` makes."""

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "lookahead"
    inner: Any
    k: int = 5
    alpha: Any = 0.5
    name: str = "lookahead"

    def init_state(self, state: State) -> Tensors:
        return state.params.select(self.trained(state)).wide().clone()

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        (alpha,) = self.at(state, "alpha")
        after, metrics = self.inner(state, x)
        due = both(stepped(state, after), look(after.step % self.k == 0))
        if due is False:
            return after, metrics
        old = after[self.name].select(self.trained_now(state))
        fast = after.params.select(old)
        slow = old.lerp(fast, alpha)
        params = slow.clone().cast(fast).where(due, fast)  # a slot shares no memory with them
        after = after.replace(params=after.params.updated(params))
        slow = after[self.name].updated(slow.where(due, old))
        return after.put(self.name, slow), metrics


@explained
def lookahead(
    k: int = 5, alpha: Share = 0.5, name: str = "lookahead"
) -> Callable[[StepStage], Lookahead]:
    """Lookahead: `k` steps forward, one step back (Zhang et al., 2019).

    https://arxiv.org/abs/1907.08610, algorithm 1. After every `k` steps of the optimizer the slow
    weights move towards the parameters, ``slow = slow + alpha * (params - slow)``, and the
    parameters go back to them. The optimizer keeps its memory. Skipped steps do not count.

    Goes around `fl.update`. The slow weights are ``state["lookahead"]``, float32 for
    half-precision parameters; ``fl.evaluate(..., params="lookahead")`` evaluates them.

    Args:
        k: Steps between two synchronizations.
        alpha: How far the slow weights move, from 0 to 1: a number, tensor or schedule.
        name: Name of the slot.

    Raises:
        TypeError: `k` is not a whole number.
        ValueError: `k` is below 1, or `alpha` not from 0 to 1.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model.weight.sum()  # the gradient is one
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(1.0)), lookahead(2, alpha=0.5))
    >>> state = step.init(torch.nn.Linear(1, 1, bias=False))
    >>> state = step.init(state.replace(params={"weight": torch.zeros(1, 1)}, slots={}))
    >>> for _ in range(4):
    ...     state, _ = step(state, torch.ones(1))
    ...     print(float(state.params["weight"]))
    -1.0
    -1.0
    -2.0
    -2.0
    """
    count = as_count(k, "lookahead(k=...)", 1)
    return functools.partial(Lookahead, k=count, alpha=alpha, name=name)
