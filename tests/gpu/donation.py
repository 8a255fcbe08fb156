"""Donated states: memory is written over, and nothing that somebody still holds."""

from __future__ import annotations

import gc
from typing import Any

import torch

import fnloop as fl
from fnloop.values.donated import DonatedError

from .problems import backend, batches, simple, smooth, started


def _donating(step: Any, device: str) -> Any:
    return fl.compile(step, donate=True, backend=backend(device))


def refused(device: str) -> None:
    """Reading a donated state raises."""
    (batch,) = batches(1, device)
    step = _donating(simple(), device)
    first, _ = step(started(step, smooth, device), batch)
    step(first, batch)
    try:
        _ = first.params
    except DonatedError:
        return
    raise AssertionError("a donated state can be read")


def kept(device: str) -> None:
    """Tensors that were taken out of a donated state stay as they are."""
    given = batches(4, device)
    step = _donating(simple(), device)
    state, taken = started(step, smooth, device), []
    for batch in given:
        weight, moment = state.params["0.weight"], state["update"]["adamw"]["mu"]["2.weight"]
        taken += [(t, t.clone()) for t in (weight, moment, state.step)]
        state, _ = step(state, batch)
    assert all(torch.equal(t, copy) for t, copy in taken), "a kept tensor has changed"


def in_place(device: str) -> None:
    """The parameters stay where they are, step after step, and memory does not grow."""
    given = batches(3, device)
    step = _donating(simple(), device)
    state, seen = started(step, smooth, device), []
    for i in range(30):
        state, _ = step(state, given[i % 3])
        if i >= 9:
            places = {p.data_ptr() for p in state.params.values()}
            seen.append((places, _allocated(device)))
    assert all(places == seen[0][0] for places, _ in seen), "parameters have moved"
    sizes = [size for _, size in seen]
    assert max(sizes) == min(sizes), f"from {min(sizes)} to {max(sizes)} bytes"


def does_not_grow(device: str) -> None:
    """Nor does it grow without donation, once nobody holds the states before."""
    given = batches(3, device)
    for compiled in (False, True):
        step = fl.compile(simple(), backend=backend(device)) if compiled else simple()
        state, sizes = started(step, smooth, device), []
        for i in range(30):
            state, _ = step(state, given[i % 3])
            if i >= 9:
                sizes.append(_allocated(device))
        assert max(sizes) == min(sizes), f"from {min(sizes)} to {max(sizes)} bytes"


def _allocated(device: str) -> int:
    if device == "cpu":
        return 0  # nobody counts
    gc.collect()
    return torch.cuda.memory_allocated()
