"""``randomness``: random numbers of a stage of one's own."""

from __future__ import annotations

import contextlib
from typing import Any

from fnloop._torch.members import drawing
from fnloop._torch.tracing import host_values, recording
from fnloop.values.key import fold
from fnloop.values.state import State


def randomness(state: State, name: str) -> contextlib.AbstractContextManager[Any]:
    """Within the block, torch draws the random numbers of this stage, at this call.

    They are a function of ``state.key``, ``state.calls``, the number of the micro-batch, and
    `name`: nothing advances, so they are the same when the call is done again, compiled, after a
    resume, and for each member of a population (``vmap`` with ``randomness="different"``). torch's
    global generators are put back afterwards.

    Args:
        state: As the stage was given it.
        name: Of the stream; two streams of one name draw the same numbers. The stage's own name.

    >>> import torch, fnloop as fl
    >>> state = fl.grad(lambda model, batch: model(batch).mean()).init(torch.nn.Linear(2, 1))
    >>> with randomness(state, "noise"):
    ...     first = torch.rand(3)
    >>> with randomness(state, "noise"):
    ...     print(torch.equal(first, torch.rand(3)))
    True
    """
    position = (state.context.micro, name)
    about = recording()
    if about is not None:
        return about.randomness(state.key, state.calls, position)
    members = host_values(state.key, state.calls)
    if members is None:  # under torch.compile
        return contextlib.nullcontext()
    seeds = [fold(key, calls, *position) for key, calls in members]
    return drawing(seeds, state.step.device)
