"""``ema``: an exponential moving average of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.schedules.ranges import Share
from fnloop.stages.base import Kind, StepStage
from fnloop.stages.donating import Donating
from fnloop.trees.nodes import tree
from fnloop.values.choice import stepped
from fnloop.values.holders import free_memory
from fnloop.values.state import State
from fnloop.values.tensors import Tensors
from fnloop.values.writes import Write


@tree
class Ema(StepStage):
    """The stage that `ema` makes."""

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "ema"
    inner: Any
    decay: Any = 0.999
    name: str = "ema"

    def init_state(self, state: State) -> Tensors:
        return state.params.select(self.trained(state)).wide().clone()

    def donating(self) -> StepStage:
        return self if self.inner.donating() is self.inner else Donating(self)

    def writing(self, state: State, x: Any) -> tuple[State, dict[str, Any], list[Write]]:
        (decay,) = self.at(state, "decay")
        if isinstance(decay, Tensor) or not state[self.name].alike(state.params):
            return *self(state, x), []
        after, metrics, calls = self.inner.writing(state, x)
        if not calls:
            return self._averaged(state, after, decay), metrics, []
        free = free_memory(state, after, self.name)
        old = after[self.name]
        new, call = (old if id(old) in free else old.clone()).lerping(after.params, 1 - decay)
        return after.put(self.name, new), metrics, [*calls, call]

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        (decay,) = self.at(state, "decay")
        after, metrics = self.inner(state, x)
        return self._averaged(state, after, decay), metrics

    def _averaged(self, state: State, after: State, decay: Any) -> State:
        old = after[self.name]
        new = old.lerp(after.params.select(old), 1 - decay)
        return after.put(self.name, new.where(stepped(state, after), old))


@explained
def ema(decay: Share = 0.999, name: str = "ema") -> Callable[[StepStage], Ema]:
    """Keep an exponential moving average of the trained parameters in ``state["ema"]``.

    After each step that is not skipped: ``average = decay * average + (1 - decay) * parameter``,
    starting from the initial parameters (Polyak & Juditsky, 1992). To evaluate it, use
    ``fl.evaluate(..., params="ema")``; to export it, ``fl.to_module(state, params="ema")``. The
    average of half-precision parameters is float32. Where the model has BatchNorm, an average needs
    running statistics of its own: `fl.refresh_batchnorm`.

    Args:
        decay: A number in [0, 1], or a schedule: `fl.schedules.uniform` makes it a plain mean.
        name: Name of the slot. Two averages in one pipeline need two names.

    Raises:
        ValueError: `decay` is not in [0, 1].

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), ema(0.9))
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> new, _ = step(state, torch.ones(3, 2))
    >>> expected = 0.9 * state.params["weight"] + 0.1 * new.params["weight"]
    >>> torch.allclose(new["ema"]["weight"], expected)
    True
    """
    return functools.partial(Ema, decay=decay, name=name)
