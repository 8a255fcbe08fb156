"""Donated states: a step has written the next state into their memory."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

from fnloop._torch import pytree
from fnloop.values.cursor import Cursor
from fnloop.values.state import State
from fnloop.values.writes import Writes


class DonatedError(RuntimeError):
    """A state was read after it had been donated."""


class Donated(State):
    """A state whose memory now holds a later state. Reading any attribute raises."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        _refuse(self)

    def __repr__(self) -> str:
        return "State(donated)"


class _Line:
    """A chain of states, each written over the one before; it knows the newest.

    Only donated states hold a strong reference to it, so it dies with the last of them.
    """

    def __init__(self) -> None:
        self._newest: State | None = None
        self._used: weakref.ref[State] | None = None

    def set(self, state: State) -> None:
        self._newest = state

    def let_go(self, state: State) -> None:
        """Hold `state`, the newest, by a weak reference only."""
        self._used, self._newest = weakref.ref(state), None

    def get(self) -> State | None:
        return self._newest if self._newest is not None or self._used is None else self._used()


def give_away(state: State, after: State) -> None:
    """Mark `state` as donated to `after`: reading it raises `DonatedError`.

    ``newest(state)`` then returns `after`, even if an exception keeps it from the caller.
    """
    line = _line_of(state) or _Line()
    after.__dict__["_line"] = weakref.ref(line)
    line.set(after)
    object.__setattr__(state, "__dict__", {"_given": state.cursor, "_next": line})
    object.__setattr__(state, "__class__", Donated)


def overwrite(state: State, after: State, writes: Writes) -> None:
    """Write a state over the one before, and mark that as donated.

    An exception may come at any time, also from a signal handler: `newest` then returns `after`
    if it has been written, else `state`.

    Args:
        state: The state to be overwritten.
        after: The next state, all of it but what is written then.
        writes: Writes the rest into the memory of `state`.
    """
    state.__dict__["_writing"] = (after, writes)
    writes.make()
    give_away(state, after)


def claim(state: State) -> None:
    """Mark a state as made by a donating step, which may overwrite it."""
    state.__dict__.setdefault("_line", None)


def release(state: State) -> None:
    """Drop the strong reference that earlier donated states hold to `state`."""
    line = _line_of(state)
    if line is not None:
        line.let_go(state)


def may_be_overwritten(state: State) -> bool:
    """Whether a donating step made `state`, so that the next one may overwrite it."""
    return "_line" in state.__dict__


def newest(state: State) -> State | None:
    """The latest state written over `state`; `state` itself if there is none; None if unknown."""
    own = vars(state)
    if "_given" in own:
        return own["_next"].get()
    if "_writing" not in own:
        return state
    after, writes = own.pop("_writing")
    return after if writes.done else state


def _line_of(state: State) -> _Line | None:
    line = vars(state).get("_line")
    return None if line is None else line()


def _refuse(state: Any) -> NoReturn:
    count = Cursor.of(object.__getattribute__(state, "__dict__")["_given"]).count
    raise DonatedError(
        f"This state (after {count} batches) was donated to a step, which has written the next "
        "state into its memory. Go on with the state that the step returned. To keep one, copy it "
        "before the step: fl.tree_map(torch.clone, state); or compile without donate=True, and "
        "train by fl.run in place of fl.fit."
    )


pytree.register(Donated, (), _refuse, _refuse, lambda static, children: None)
