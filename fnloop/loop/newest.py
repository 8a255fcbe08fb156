"""``Newest``: the newest state of a run, whatever comes in the middle of a step."""

from __future__ import annotations

from typing import Any

from fnloop.effects.effect import Run
from fnloop.values.cursor import Cursor
from fnloop.values.donated import Donated, may_be_overwritten, newest
from fnloop.values.state import State


class Newest:
    """Finds the newest state after an exception in a step or after it.

    A step that donates writes the next state into the memory of the one before, in one call. The
    number of calls in the state tells which of the two it is.

    Attributes:
        drawn: The cursor after the batch that was drawn last.
        calls: Calls of the step up to the state at ``run.cursor``; None if no step can write over
            it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.drawn = Cursor.of(run.state.cursor)
        self.calls: int | None = calls_of(run.state)

    def is_at(self, state: State) -> None:
        """A step within a call has been done, whose batch is the one drawn last."""
        if not may_be_overwritten(state):
            self._run.state = state
        self._run.cursor, self._run.whole = self.drawn, False
        self.calls = calls_of(state)

    def is_known(self, state: State, cursor: Cursor) -> bool:
        """Whether `state` is that of the step at `cursor`, and no later one has been begun."""
        if isinstance(state, Donated):  # it came before the one that follows was noted
            return False
        return calls_of(state) == self.calls and self._run.cursor is cursor

    def recover(self) -> None:
        """Let the run have the newest state, at its own cursor."""
        run = self._run
        state = newest(run.state)
        if state is None:
            return
        if self.calls is not None and calls_of(state) != self.calls:
            state = state.replace(cursor=self.drawn.tensor())
            run.cursor, run.whole = self.drawn, False
        elif self.calls is not None and run.cursor is not None and not run.whole:
            state = state.replace(cursor=run.cursor.tensor())  # within a call of several steps
        run.state = state


def calls_of(state: State) -> int:
    """Number of calls of the step so far; all members of a population have the same."""
    calls: Any = state.calls
    return calls.item() if not calls.ndim else int(calls.max())
