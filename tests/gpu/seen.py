"""What a step consists of, and how fast it is: told without waiting for the device."""

from __future__ import annotations

import torch

import fnloop as fl
from fnloop.effects.effect import Run
from fnloop.values.cursor import Cursor

from . import reads
from .problems import Net, batches, everything, simple, started


def summary(device: str) -> None:
    """A step on the device is told as one on the CPU is, and nothing runs there."""
    for step in (simple(), everything()):
        found = []
        for where in ("cpu", device):
            state = started(step, Net, where)
            found.append(fl.summary(step, state, batches(1, where)[0]))
        assert found[0].flops == found[1].flops, (found[0].flops, found[1].flops)
        assert found[0].modules == found[1].modules


def measured(device: str) -> None:
    """Speed and memory are measured without reading from the device."""
    step = simple()
    with reads.watched(device) as (where, look):
        state, given = started(step, Net, where), batches(3, where)
        speed = fl.trackers.throughput(flops=1e6)
        load = fl.trackers.device_stats(cpu=True, every_seconds=0)
        about = Run(step, state)
        speed.open(about), load.open(about)
        for count in range(1, 7):
            batch = given[count % 3]
            with look():
                speed.drawn(Cursor(0, count, count), batch)
            state, metrics = step(state, batch)
            state = state.replace(cursor=Cursor(0, count, count).tensor())
            with look():
                speed(state, metrics), load(state, metrics)
                found = about.measured()
        speed.close("completed")
    assert found["samples_per_sec"] > 0 and found["device/process_bytes"] > 0
    if where == "cuda":
        peak = torch.cuda.memory_stats()["allocated_bytes.all.peak"]
        assert 0 < found["device/allocated_bytes.all.current"] <= peak
