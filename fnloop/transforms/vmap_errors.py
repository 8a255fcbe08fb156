"""What is said of a population whose members can be trained, and not all at once."""

from __future__ import annotations

import contextlib
from typing import Any

from fnloop._torch.tracing import recording
from fnloop.values.stacked import each_member
from fnloop.values.state import State

NOTE = (
    "fnloop: a member of this population takes the batch alone, so it is vmap that cannot run the "
    'operation above. With mode="loop", as in fl.ensemble(step, n, mode="loop"), members are '
    "trained one after the other."
)
RECORDED = (
    "fnloop: all members of this population are recorded as one vmapped step. If a member alone "
    'can be compiled, so can the population with mode="loop", as in fl.ensemble(step, n, '
    'mode="loop").'
)


def explain(error: Exception, population: Any, state: State, batch: Any) -> None:
    """Add `NOTE` to an error of a vmapped step if the first member alone has none.

    While a step is recorded nothing is tried, and `RECORDED` is added.
    """
    if recording() is not None:
        error.add_note(RECORDED)
        return
    with contextlib.suppress(Exception):
        population.member(0)(each_member(state)[0], population.batch_of(batch, 0))
        error.add_note(NOTE)


def is_of_vmap(error: BaseException) -> bool:
    """Whether a loop over the members has been advised."""
    return not {NOTE, RECORDED}.isdisjoint(getattr(error, "__notes__", ()))
