"""A state whose memory was given away."""

from __future__ import annotations

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


def donate(state: State) -> None:
    """Mark `state` as given away: whoever reads it gets an error that says so."""
    cursor = state.cursor
    own = state.__dict__
    own.clear()
    own["_cursor"] = cursor
    object.__setattr__(state, "__class__", Donated)


def _refuse(state: Any) -> NoReturn:
    count = Cursor.of(object.__getattribute__(state, "__dict__")["_cursor"]).count
    raise DonatedError(
        f"This state (after {count} batches) was donated to a compiled step, which has written "
        "the next state into its memory. Go on with the state that the step returned. To keep "
        "one, copy it before the step: fl.tree_map(torch.clone, state); or compile without "
        "donate=True."
    )


pytree.register(Donated, (), _refuse, _refuse, lambda static, children: None)
