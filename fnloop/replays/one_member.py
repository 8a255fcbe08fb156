"""Step, state and batch of one member of a population, to be replayed."""

from __future__ import annotations

from typing import Any

from fnloop.values.stacked import ACTIVE, SLOT, members_of
from fnloop.values.stacked import member as member_of
from fnloop.values.state import State


def alone(step: Any, states: State, batch: Any, i: int | None) -> tuple[Any, State, Any, list[str]]:
    """Step, state and batch of a member of a population, and what to say of it."""
    n = members_of(states)
    if n is None:
        raise ValueError(f"replay(member={i}) is for a population; this is the state of one run.")
    if i is None or not hasattr(step, "batch_of"):
        raise ValueError(
            f"This is the state of {n} members, and a replay is of one: fl.replay(step, state, "
            f"batch, member=i), with i from 0 to {n - 1}, and the step that fl.ensemble or "
            "fl.sweep has made. Their losses: step(state, batch)[1]."
        )
    state = member_of(states, i)
    note = f"This is member {i} of {n}, run alone: equal to rounding."
    if SLOT in states.slots and not states[SLOT][ACTIVE][i]:
        note += " It is frozen, so the run leaves it as it is."
    return step.member(i), state, step.batch_of(batch, i), [note]
