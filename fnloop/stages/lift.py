"""``stage``: a plain function as a stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fnloop.names.keywords import explained
from fnloop.stages.base import GradStage, Kind, StepStage
from fnloop.stages.callback import Callback
from fnloop.stages.functions import as_function, takes
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.metrics import check_metrics
from fnloop.values.state import State


class Lifted:
    """What the stages made from plain functions share."""

    reports: ClassVar[str]  # the second return value, for messages
    reads_any_slot: ClassVar[bool] = True
    kind: ClassVar[Kind]
    function: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", as_function(self.function, "f(state, x)"))
        call = getattr(self.function, "call", None)
        if call is not None and not takes(call, 2):
            raise TypeError(
                f"The stage {short(call)} takes {inspect.signature(call)}; it is called with a "
                f"state and {_GIVEN[self.kind]}, and returns (state, {self.reports})."
            )

    def __call__(self, state: State, x: Any) -> Any:
        result = self.function(state, x)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], State)):
            got = tuple(map(short, result)) if isinstance(result, tuple) else short(result)
            raise TypeError(
                f"The stage {short(self.function)} must return (state, {self.reports}), got {got}."
            )
        return result

    def _check(self, reported: Any, metrics: Any) -> None:
        """Check what the function returned beside the state."""
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"The stage {short(self.function)} must return (state, {self.reports}), got "
                f"(state, {short(reported)})."
            )
        check_metrics(metrics, f"The stage {short(self.function)}")

    def describe(self) -> str:
        return short(self.function)


_GIVEN = {"grad": "a batch", "step": "a batch", "callback": "metrics"}


@tree
class LiftedGrad(Lifted, GradStage):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A function ``(state, batch) -> (state, Grads)`` as a stage."""

    label: ClassVar[str] = "stage"
    reports: ClassVar[str] = "fl.Grads"
    function: Any

    def __call__(self, state: State, x: Any) -> Any:
        after, grads = super().__call__(state, x)
        self._check(grads, grads.metrics if isinstance(grads, Grads) else None)
        return after, grads


@tree
class LiftedStep(Lifted, StepStage):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A function ``(state, batch) -> (state, metrics)`` as a stage."""

    label: ClassVar[str] = "stage"
    reports: ClassVar[str] = "metrics"
    function: Any

    def __call__(self, state: State, x: Any) -> Any:
        after, metrics = super().__call__(state, x)
        self._check(metrics, metrics)
        if after.calls is state.calls:  # the function did not count the call itself
            after = after.replace(calls=state.calls + 1)
        return after, metrics


@tree
class LiftedCallback(Lifted, Callback):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A function ``(state, metrics) -> (state, metrics)`` as a stage."""

    label: ClassVar[str] = "stage"
    reports: ClassVar[str] = "metrics"
    function: Any

    def adds(self, state: State, metrics: Mapping[str, Any]) -> None:
        return None


@explained
def stage(function: Callable[[State, Any], Any], kind: Kind) -> Any:
    """Make a stage from a plain function.

    Args:
        function: ``(state, x) -> (state, y)``, pure.
        kind: ``"grad"`` (batch to `Grads`), ``"step"`` (batch to metrics) or ``"callback"``
            (metrics to metrics).

    Raises:
        TypeError: `function` is not callable; or, at the call, returns something else.
        ValueError: `kind` is unknown.

    >>> def halve(state, batch):
    ...     return state.replace(params=state.params.scale(0.5), step=state.step + 1), {}
    >>> step = stage(halve, "step")
    >>> import torch
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> int(step(state, None)[0].step)
    1
    """
    if isinstance(function, type):
        raise TypeError(f"stage takes a function (state, x) -> (state, y), got {short(function)}.")
    kinds = {"grad": LiftedGrad, "step": LiftedStep, "callback": LiftedCallback}
    if kind not in kinds:
        raise ValueError(f'kind is "grad", "step" or "callback", got {kind!r}.')
    return kinds[kind](function)
