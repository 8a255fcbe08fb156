"""Sort what a run was given as callbacks, and give callbacks their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fnloop.effects import Effect
from fnloop.loop.checks import check_metric_names
from fnloop.stages.base import Callback, Stage
from fnloop.stages.lift import stage
from fnloop.values import State


def sort(callbacks: Sequence[Any]) -> tuple[list[Callback], list[Effect]]:
    """Callbacks and effects, each in their order."""
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks is a list of callbacks, got {type(callbacks).__name__}.")
    stages: list[Callback] = []
    effects: list[Effect] = []
    for callback in callbacks:
        if isinstance(callback, Effect):
            effects.append(callback)
        elif isinstance(callback, Callback):
            stages.append(callback)
        elif isinstance(callback, Stage):
            raise TypeError(
                f"{callback.describe()} is a stage of the pipeline, not a callback: put it into "
                "fl.pipe(...)."
            )
        elif callable(callback):
            stages.append(stage(callback, "callback"))
        else:
            raise TypeError(
                "A callback is a function (state, metrics) -> (state, metrics), a stage or an "
                "effect; got "
                f"{type(callback).__name__}."
            )
    _check_names(stages, effects)
    return stages, effects


def _check_names(stages: Sequence[Callback], effects: Sequence[Effect]) -> None:
    slots = [part.slot for callback in stages for part in callback.stages() if part.slot]
    twice = sorted({name for name in slots if slots.count(name) > 1})
    if twice:
        raise ValueError(
            f"Two callbacks keep their memory under the name {twice[0]!r}. Give one of them "
            'another name: name="...".'
        )
    numbers: dict[str, int] = {}
    for effect in effects:  # memos are kept by name
        numbers[effect.name] = numbers.get(effect.name, 0) + 1
        if numbers[effect.name] > 1:
            effect.name = f"{effect.name}.{numbers[effect.name]}"


def init_callbacks(
    stages: Sequence[Callback], effects: Sequence[Effect], state: State, metrics: Mapping[str, Any]
) -> State:
    """Give callbacks their memory, and refuse those that wait for a metric that nobody makes."""
    example = dict(metrics)
    complete = True
    for callback in stages:
        if complete:
            check_metric_names(callback.describe(), callback.needs(), example)
        state = callback.init(state, example)
        added = callback.adds(state, example)
        complete = complete and added is not None
        example.update(added or {})
    for effect in effects if complete else ():
        monitor = getattr(effect, "monitor", None)
        if monitor is not None:
            check_metric_names(effect.name, (monitor,), example)
    return state
