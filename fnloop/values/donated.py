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


def give_away(state: State, after: State) -> None:
    """Mark `state` as given away to `after`: whoever reads it gets an error that says so.

    Until `after` is given away in turn, `newest` finds it: an exception may come before the caller
    has it.
    """
    after.__dict__["_from"] = weakref.ref(state)
    object.__setattr__(state, "__dict__", {"_cursor": state.cursor, "_next": after})
    object.__setattr__(state, "__class__", Donated)


def release(state: State) -> None:
    """Let go of the tie to the state that `state` was made of."""
    before = state.__dict__.pop("_from", None)
    given = None if before is None else before()
    if given is not None:
        given.__dict__["_next"] = None


def is_lent(state: State) -> bool:
    """Whether a donating step has made `state`, so that the next one may write over it."""
    return "_from" in state.__dict__


def newest(state: State) -> State | None:
    """What a state has become, if a step has written over it; None if that is not known."""
    found: Any = state
    while found is not None and "_next" in vars(found):
        found = vars(found)["_next"]
    return found


def _refuse(state: Any) -> NoReturn:
    count = Cursor.of(object.__getattribute__(state, "__dict__")["_cursor"]).count
    raise DonatedError(
        f"This state (after {count} batches) was donated to a compiled step, which has written "
        "the next state into its memory. Go on with the state that the step returned. To keep "
        "one, copy it before the step: fl.tree_map(torch.clone, state); or compile without "
        "donate=True."
    )


pytree.register(Donated, (), _refuse, _refuse, lambda static, children: None)
