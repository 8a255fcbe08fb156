"""``Donating``: a step that writes the next state over the one that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fnloop._torch.tracing import in_modes
from fnloop.stages.base import Stage, StepStage
from fnloop.trees.nodes import tree
from fnloop.values.donated import claim, overwrite, release
from fnloop.values.state import State
from fnloop.values.tensors import Tensors
from fnloop.values.writes import Writes

WORTH = 1 << 14
"""Number of values from which it takes longer to copy them than to see whether one must."""

PER_TENSOR = 1 << 11
"""How many more values could be copied in the time that it takes to begin with a tensor."""


@tree
class Donating(StepStage):
    """The step `inner`, for a caller that does not use a state again after the step."""

    inner: Any

    @property
    def slot(self) -> str | None:
        return None

    def stages(self) -> Iterator[Stage]:
        yield from self.inner.stages()

    def describe(self) -> str:
        return self.inner.describe()

    def script(self) -> list[str]:
        return self.inner.script()

    def init(self, model: Any, seed: int = 0) -> State:
        return self.inner.init(model, seed)

    @property
    def keeping(self) -> StepStage:
        return self.inner

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        if _are_few(state.params) or in_modes():
            return self.inner(state, x)
        release(state)
        after, metrics, calls = self.inner.writing(state, x)
        if calls:
            overwrite(state, after, Writes(calls))
        else:
            claim(after)
        return after, metrics


def _are_few(params: Tensors) -> bool:
    return params.kinds.values + PER_TENSOR * len(params) < WORTH
