"""``randomness``: reproducible random numbers inside a custom stage."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.members import drawing
from fnloop._torch.random import seeded
from fnloop._torch.tracing import host_values, recording, transformed
from fnloop.names.keywords import explained
from fnloop.values.key import fold
from fnloop.values.state import State


@explained
def randomness(state: State, name: str) -> contextlib.AbstractContextManager[Any]:
    """A context manager that seeds torch's random numbers for this stage and this call.

    The numbers are a function of ``state.key``, ``state.calls``, the micro-batch index and `name`;
    in an `fl.sequence`, of the part's name too.
    They are the same when the call is repeated, compiled or resumed, and for each member of a
    population (``vmap`` with ``randomness="different"``). torch's global generators are restored
    on exit.

    Args:
        state: The state that the stage received.
        name: Name of the stream, usually the stage's name. Equal names draw equal numbers.

    >>> import torch, fnloop as fl
    >>> state = fl.grad(lambda model, batch: model(batch).mean()).init(torch.nn.Linear(2, 1))
    >>> with randomness(state, "noise"):
    ...     first = torch.rand(3)
    >>> with randomness(state, "noise"):
    ...     print(torch.equal(first, torch.rand(3)))
    True
    """
    return stream(state, name)


def stream(state: State, name: str) -> contextlib.AbstractContextManager[Any]:
    """As `randomness`, for each step's own calls, whose arguments need no check."""
    position = (state.context.micro, state.context.part + name)
    about = recording()
    if about is not None:
        return about.randomness(state.key, state.calls, position)
    if not state.key.ndim and not transformed():  # the usual case
        seed = fold(state.key.item(), state.calls.item(), *position)  # type: ignore[arg-type]
        return seeded(seed, state.step.device)
    members = host_values(state.key, state.calls)
    seeds = [fold(key, calls, *position) for key, calls in members]
    return drawing(seeds, state.step.device)


def normal_like(t: Tensor) -> Tensor:
    """Standard normal numbers, the same however the memory of `t` lies.

    ``torch.randn_like`` fills memory in its order, which for a transposed tensor is another than
    for its copy in a packed layout, in a bucket of an exchange or under ``vmap``.
    """
    return torch.randn_like(t, memory_format=torch.contiguous_format)
