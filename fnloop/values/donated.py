"""A state whose memory was given away."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

from fnloop._torch import pytree
from fnloop.values.cursor import Cursor
from fnloop.values.state import State


class DonatedError(RuntimeError):
    """A state was read after it had been donated."""


class Donated(State):
    """What a state becomes when a compiled step has written its successor into its memory."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        _refuse(self)

    def __repr__(self) -> str:
        return "State(donated)"


class _Line:
    """States each of which was written over the one before: where the newest is.

    Those that were given away hold it, so that it ends with the last of them.
    """

    def __init__(self) -> None:
        self._newest: State | None = None
        self._used: weakref.ref[State] | None = None

    def set(self, state: State) -> None:
        self._newest = state

    def let_go(self, state: State) -> None:
        """Do not keep `state`, which is the newest, alive while a step uses it."""
        self._used, self._newest = weakref.ref(state), None

    def get(self) -> State | None:
        return self._newest if self._newest is not None or self._used is None else self._used()


def give_away(state: State, after: State) -> None:
    """Mark `state` as given away to `after`: whoever reads it gets an error that says so.

    From then on `newest` finds `after`: an exception may come before the caller has it.
    """
    line = _line_of(state) or _Line()
    after.__dict__["_line"] = weakref.ref(line)
    line.set(after)
    object.__setattr__(state, "__dict__", {"_given": state.cursor, "_next": line})
    object.__setattr__(state, "__class__", Donated)


def release(state: State) -> None:
    """Let nobody but the caller hold `state` on behalf of those that it was written over."""
    line = _line_of(state)
    if line is not None:
        line.let_go(state)


def may_be_overwritten(state: State) -> bool:
    """Whether a donating step has made `state`, so that the next one may write over it."""
    return "_line" in state.__dict__


def newest(state: State) -> State | None:
    """What a state has become, if steps have written over it; None if that is not known."""
    own = vars(state)
    return own["_next"].get() if "_given" in own else state


def _line_of(state: State) -> _Line | None:
    line = vars(state).get("_line")
    return None if line is None else line()


def _refuse(state: Any) -> NoReturn:
    count = Cursor.of(object.__getattribute__(state, "__dict__")["_given"]).count
    raise DonatedError(
        f"This state (after {count} batches) was donated to a compiled step, which has written "
        "the next state into its memory. Go on with the state that the step returned. To keep "
        "one, copy it before the step: fl.tree_map(torch.clone, state); or compile without "
        "donate=True."
    )


pytree.register(Donated, (), _refuse, _refuse, lambda static, children: None)
