"""``Together``: which steps of a loop are done in one call, and what callbacks are told of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.effects.effect import Effect
from fnloop.loop.newest import Newest, calls_of
from fnloop.loop.skipped import SkipWatch
from fnloop.stages.callback import Callback
from fnloop.values.between import Between
from fnloop.values.cursor import Cursor
from fnloop.values.merging import merge_all
from fnloop.values.state import State


class Outcome(NamedTuple):
    """A step that has been done.

    Attributes:
        cursor: The position after its batch.
        place: The same as a tensor.
        metrics: What it has reported.
    """

    cursor: Cursor
    place: Tensor
    metrics: Mapping[str, Any]


class Calling(NamedTuple):
    """A call of one or more steps.

    Attributes:
        before: All steps but the last.
        cursor, batch: Of the last step.
        failed: What the next batch or the next step has raised.
    """

    before: Sequence[Outcome]
    cursor: Cursor
    batch: Any
    failed: Exception | None


Draw = Callable[[Cursor], Any]
Gone = tuple[Calling, tuple[State, Any]]


class Together:
    """Calls of several steps, each of which ends where somebody needs the state.

    Attributes:
        steps: Steps in a call, at most.
        reported: Names of the metrics that the step reports; set after the first one.
    """

    def __init__(
        self,
        step: Any,
        stages: Sequence[Callback],
        effects: Sequence[Effect],
        skips: SkipWatch,
        newest: Newest,
    ) -> None:
        self.steps: int = 1
        if hasattr(step, "series"):
            self.steps = getattr(step, "steps", 1)
            step.begin()
        self.reported: Collection[str] = ()
        self._step, self._newest = step, newest
        self._stages, self._effects, self._skips = stages, effects, skips
        self._own = [part.slot for stage in stages for part in stage.stages() if part.slot]

    def go(self, state: State, cursor: Cursor, batch: Any, draw: Draw | None) -> Gone:
        """Do steps until somebody needs the state, `draw` finds nothing, or there were enough.

        Args:
            state: The newest state.
            cursor: The position after the first batch.
            batch: The first batch.
            draw: Gives the next cursor and batch; None for one step only.

        Returns:
            The call; the state after its last step, and what that has reported.

        Raises:
            Exception: The first step failed. Later errors are in the result.
        """
        newest, series = self._newest, self._step.series(state)
        newest.calls = calls_of(state)
        turns: list[Outcome] = []
        failed: Exception | None = None
        last: Any = None
        try:
            while True:
                metrics = series(batch)
                newest.is_at(series.state)
                last, place = batch, cursor.tensor()
                series.cursor = place
                turns.append(Outcome(cursor, place, metrics))
                if draw is None or len(turns) == self.steps or self._ends(cursor):
                    break
                drawn = draw(cursor)
                if drawn is None:
                    break
                cursor, batch = drawn
                newest.drawn = cursor
        except Exception as error:
            if not turns or not newest.is_known(series.state, turns[-1].cursor):
                raise
            failed = error
        *before, turn = turns
        return Calling(before, turn.cursor, last, failed), (series.state, turn.metrics)

    def _ends(self, cursor: Cursor) -> bool:
        """Whether the loop, a callback or an effect needs the state after the batch at `cursor`."""
        if not cursor.index or cursor.count >= self._skips.due:
            return True
        reported = self.reported
        return any([one.needs_state(cursor, reported) for one in self._stages]) or any(
            [one.needs_state(cursor, reported) for one in self._effects]
        )

    def tell(self, state: State, turn: Outcome) -> tuple[State, Mapping[str, Any]]:
        """Call callbacks and effects for a step that was not the last one of its call.

        Args:
            state: The state after the last step.
            turn: The step.

        Returns:
            The state with the callbacks' new memory, and the metrics with theirs.
        """
        slots = {name: state.slots[name] for name in self._own if name in state.slots}
        between: State = Between(turn.place, slots)
        metrics = turn.metrics
        for callback in self._stages:
            between, metrics = callback(between, metrics)
        for effect in self._effects:
            effect(between, metrics)
        if any(between.slots[name] is not slots[name] for name in slots):
            state = state.replace(slots={**state.slots, **between.slots})
        return state, metrics


class Merged(Mapping[str, Any]):
    """The merge of the metrics of several steps, made when it is looked at."""

    def __init__(self, parts: Sequence[Mapping[str, Any]]) -> None:
        self._parts = parts

    @functools.cached_property
    def _whole(self) -> Mapping[str, Any]:
        return merge_all(self._parts)

    def __getitem__(self, name: str) -> Any:
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    def __repr__(self) -> str:
        return repr(self._whole)
