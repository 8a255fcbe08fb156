"""Attach the last good state to an exception."""

from __future__ import annotations

from typing import Any

from fnloop.values.donated import Donated
from fnloop.values.signals import passing_over
from fnloop.values.state import State


def attach(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute of an exception, unless it has one of that name, or allows none."""
    with passing_over(Exception):  # it may be frozen, or compute the attribute
        if not hasattr(error, name):
            setattr(error, name, value)


def attach_state(error: BaseException, state: State) -> None:
    """Set ``error.state``; what an inner run has attached is replaced.

    A function that took the state for a model is told which it should be.
    """
    if isinstance(error, TypeError) and str(error) == "'State' object is not callable":
        error.add_note(
            "fnloop: a training step takes a state and a batch; this function calls the state as "
            "its model, so it may be a loss. Make a step of it: "
            "fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3)))."
        )
    with passing_over(Exception):
        if isinstance(getattr(error, "state", None), State):
            del error.state  # type: ignore[attr-defined]  # pyright: ignore
    attach(error, "state", state)


def add_note(error: BaseException) -> None:
    """Say in the traceback where the state is."""
    with passing_over(Exception):
        state: Any = getattr(error, "state", None)
        if isinstance(state, State) and not isinstance(state, Donated):
            error.add_note(
                f"fnloop: the state before this failure (after {int(state.cursor[2])} batches) is "
                "in error.state."
            )
