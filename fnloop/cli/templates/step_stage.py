"""``new_step``: say in a line what it does, and where it is from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch

import fnloop as fl


@fl.tree
class NewStep(fl.base.StepStage):
    """The stage that `new_step` makes; its fields are its settings, which print and sweep."""

    wraps: ClassVar[Any] = "step"
    label: ClassVar[str] = "new_step"
    inner: Any
    start: Any = 0
    name: str = "new_step"

    def init_state(self, state: fl.State) -> dict[str, Any]:
        """Its memory, which is ``state[self.name]`` from then on; without a `name` it has none."""
        count = torch.zeros((), dtype=torch.int64, device=state.step.device)
        return {"mean": state.params.clone(), "count": count}

    def __call__(self, state: fl.State, x: Any) -> tuple[fl.State, dict[str, Any]]:
        (start,) = self.at(state, "start")  # a number, tensor or schedule
        after, metrics = self.inner(state, x)
        old = after[self.name]
        # A step that is skipped does not move `state.step`, and leaves no trace.
        due = (after.step != state.step) & (after.step > start)
        count = old["count"] + due
        mean = old["mean"].lerp(after.params, 1 / count.clamp(min=1))
        memory = {"mean": mean.where(due, old["mean"]), "count": count}
        return after.put(self.name, memory), metrics


def new_step(start: Any = 0, name: str = "new_step") -> Callable[[fl.base.StepStage], NewStep]:
    """Keep the mean of the parameters of all steps.

    Goes behind ``fl.update``. The mean is ``state["new_step"]["mean"]``.

    Args:
        start: After how many steps it begins.
        name: Name of its memory in the state.
    """
    return functools.partial(NewStep, start=start, name=name)
