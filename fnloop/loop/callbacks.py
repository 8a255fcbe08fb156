"""Sort a run's callbacks, and add their memory to the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fnloop.effects.effect import Effect
from fnloop.loop.checks import check_metric_names
from fnloop.stages.base import Stage, unfinished
from fnloop.stages.callback import Callback
from fnloop.stages.lift import stage
from fnloop.values.state import State


def sort(callbacks: Sequence[Any], step: Any) -> tuple[list[Callback], list[Effect]]:
    """Callbacks and effects, each in order; refuses slots that `step` has already.

    What gathers comes before what saves: a checkpoint has what it remembers, this step included.
    """
    stages: list[Callback] = []
    effects: list[Effect] = []
    for callback in listed(callbacks):
        if isinstance(callback, Effect):
            effects.append(callback)
        elif isinstance(callback, Callback):
            stages.append(callback)
        elif isinstance(callback, Stage) or unfinished(callback):
            what = callback.describe() if isinstance(callback, Stage) else callback.func.label
            raise TypeError(
                f"{what} is a stage of the pipeline, not a callback: put it into fl.pipe(loss, "
                f"fl.grad, ...)."
            )
        elif isinstance(callback, type):
            raise TypeError(
                f"callbacks has the class {callback.__name__} in it, not an instance: write "
                f"{callback.__name__}(...)."
            )
        elif callable(callback):
            stages.append(stage(callback, "callback"))
        else:
            raise TypeError(
                "A callback is a function (state, metrics) -> (state, metrics), a stage or an "
                f"effect; got {type(callback).__name__}."
                + (" Add those of a list one by one: [*list]." if _is_list(callback) else "")
            )
    _check_slots(stages, step)
    return stages, _gathering_first(effects)


def _gathering_first(effects: list[Effect]) -> list[Effect]:
    """The effects in order, but those that gather before the first that saves."""
    first = next((i for i, e in enumerate(effects) if e.saves_to is not None), len(effects))
    ahead = [effect for effect in effects[first:] if effect.gathers]
    return [*effects[:first], *ahead, *[e for e in effects[first:] if not e.gathers]]


def listed(callbacks: Any) -> Sequence[Any]:
    """`callbacks`; an error if it is no list."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise TypeError(
            f"callbacks is a list, got {type(callbacks).__name__}: write callbacks=[...]."
        )
    return callbacks


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _check_slots(stages: Sequence[Callback], step: Any) -> None:
    taken: dict[str, str] = {}
    own = list(step.stages()) if isinstance(step, Stage) else []
    for part in [*own, *(part for callback in stages for part in callback.stages())]:
        if part.slot is None:
            continue
        if part.slot in taken:
            raise ValueError(
                f"{taken[part.slot]} and {part.describe()} keep their memory under the same name, "
                f'{part.slot!r}. Give one of them another name: name="...".'
            )
        taken[part.slot] = part.describe()


def init_callbacks(
    stages: Sequence[Callback], effects: Sequence[Effect], state: State, metrics: Mapping[str, Any]
) -> State:
    """Add callbacks' memory to the state; refuse those that wait for a metric nobody reports."""
    example = dict(metrics)
    complete = True
    for callback in stages:
        if complete:
            check_metric_names(callback.describe(), callback.needs(), example, state)
        state = callback.init(state, example)
        added = callback.adds(state, example)
        complete = complete and added is not None
        example.update(added or {})
    for effect in effects if complete else ():
        check_metric_names(effect.name, effect.needs(), example, state)
    return state
