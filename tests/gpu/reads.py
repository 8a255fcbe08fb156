"""Who reads from the device: each look waits for all that the device has to do."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any
from unittest import mock

import torch

import fnloop as fl
from fnloop._torch import random

from .problems import Net, backend, batches, everything, simple, started


def eager(device: str) -> None:
    """Eager steps with dropout do not read from the device, nor do those that donate."""
    for step in _steps(device):
        quietly(step, device)
    quietly(simple().donating(), device)


def compiled(device: str) -> None:
    """Compiled steps with dropout do not read from the device, nor do those that donate."""
    simpler, most = _steps(device)
    for step, donate in ((simpler, False), (simpler, True), (most, True)):
        quietly(fl.compile(step, donate=donate, backend=backend(device)), device)


def merged(device: str) -> None:
    """Metrics are merged and kept without a look, and read by one."""
    step = simple()
    with watched(device) as (where, look):
        state, given = started(step, Net, where), batches(3, where)
        reported = []
        for batch in given:
            state, metrics = step(state, batch)
            reported.append(metrics)
        with look():
            merged = reported[0]
            for metrics in reported[1:]:
                merged = {name: merged[name].merge(metrics[name]) for name in merged}
        assert merged["loss"].total.device.type == where


def quietly(step: Any, device: str) -> None:
    """Run a step; raise if it reads from the device after its first steps.

    At the fourth and eighth call a model is looked at closely, which must not read either.
    """
    with watched(device) as (where, look):
        state, given = started(step, Net, where), batches(3, where)
        for i in range(9):
            with look() if i >= 3 else contextlib.nullcontext():
                state, _ = step(state, given[i % 3])
        assert int(state.calls) == 9


def _steps(device: str) -> list[Any]:
    """The device "meta", which stands for the CPU, has no half precision."""
    return [simple(), everything(half=device != "cpu")]


@contextlib.contextmanager
def watched(device: str) -> Generator[tuple[str, Any]]:
    """A device, and a context manager inside which reading from it raises.

    For the CPU, that is the device "meta", whose tensors have no values that could be read.
    """
    if device == "cpu":
        with mock.patch.object(random, "_of", lambda device: torch.Generator()):
            yield "meta", contextlib.nullcontext
    else:
        yield device, _error_on_sync


@contextlib.contextmanager
def _error_on_sync() -> Generator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
