"""``ema``: an exponential moving average of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from fnloop._torch import foreach
from fnloop._torch.tracing import tracing
from fnloop.optim.base import at, wide
from fnloop.stages.base import Kind, StepStage
from fnloop.trees.nodes import tree
from fnloop.values.packed import groups_of, joined, parted, pick
from fnloop.values.state import State


@tree
class Ema(StepStage):
    """The stage that `ema` makes."""

    wraps: ClassVar[Kind | None] = "step"
    spelling: ClassVar[str] = "ema"
    inner: Any
    decay: Any = 0.999
    name: str = "ema"

    def __post_init__(self) -> None:
        if isinstance(self.decay, (int, float)) and not 0 <= self.decay <= 1:
            raise ValueError(f"ema(decay) takes a decay between 0 and 1, got {self.decay}.")
        super().__post_init__()

    def memory(self, state: State) -> dict[str, Tensor]:
        params = {name: state.params[name] for name in state.skeleton.trainable}
        return {name: p.to(wide(p.dtype), copy=True) for name, p in params.items()}

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        before = state
        state, metrics = self.inner(before, x)
        groups = groups_of(state[self.name])
        own, names = joined(state[self.name], groups), state[self.name]
        current = joined(pick(state.params, names), groups)
        old, params = list(own.values()), [current[name] for name in own]
        if tracing() or state.step.device.type != "cpu":
            decay = at(self.decay, before.step)
            new = foreach.lerp(
                old, [p.to(o.dtype) for p, o in zip(params, old, strict=True)], 1 - decay
            )
            new = foreach.select(state.step != before.step, new, old)
        elif state.step is before.step or int(state.step) == int(before.step):  # a skipped step
            return state, metrics
        else:
            decay = at(self.decay, int(before.step))
            same = [p.to(o.dtype) for p, o in zip(params, old, strict=True)]
            new = foreach.lerp(old, same, 1 - decay)
        new = dict(zip(own, new, strict=True))
        return state.put(self.name, parted(new, groups, names)), metrics


def ema(decay: Any = 0.999, name: str = "ema") -> Callable[[StepStage], Ema]:
    """Keep an exponential moving average of the trained parameters, in ``state["ema"]``.

    After each step that was not skipped: ``average = decay * average + (1 - decay) * parameter``,
    starting from the initial parameters (Polyak & Juditsky, 1992). Evaluate it with
    ``fl.evaluate(..., params="ema")``, export it with ``fl.to_module(state, params="ema")``. The
    average of half-precision parameters is float32.

    Args:
        decay: Between 0 and 1; a number or a schedule.
        name: Of the slot: two averages in one pipeline need two names.

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
