"""Check the formulas' times: ``torchrun --nproc-per-node 2 -m tests.distributed.links``.

The speed and the latency of the connection are measured by single exchanges; then what these say
of the exchanges of whole steps is compared with the time that these take.
"""

from __future__ import annotations

import statistics
import time
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fnloop as fl
from fnloop.distributed.cost import Link, Machine
from tests.distributed.measure import Ours, batches
from tests.distributed.traffic import Traffic


class Exchanging(TorchDispatchMode):
    """Notes the seconds of each exchange inside of it, until its result is there."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if func.namespace == "_c10d_functional":
            taken = time.perf_counter() - start
            if func.name().endswith("wait_tensor"):
                self.seconds[-1] += taken
            else:
                self.seconds.append(taken)
        return result


def quick(times):
    """The first quartile: other processes make a time longer, never shorter."""
    return statistics.quantiles(times, n=4)[0]


def seconds(mesh, exchange, values, rounds=24):
    """The time of an exchange of so many numbers a rank; of the rank that comes last."""
    tensor, found = torch.randn(mesh.data, values), []
    for _ in range(rounds):
        mesh.gather(torch.zeros(1))  # so that they begin together
        start = time.perf_counter()
        exchange(tensor)
        found.append(min(mesh.exchange(time.perf_counter() - start)))
    return quick(found)


def link(mesh, exchange, turns=1):
    """Speed and latency of exchanges that go round the ranks so often."""
    small, large = 4, 3_000_000
    wait, long = seconds(mesh, exchange, small), seconds(mesh, exchange, large)
    turns *= mesh.data - 1
    return Link(turns * 4 * (large - small) / max(long - wait, 1e-9), wait / turns)


def links(mesh):
    """By what an exchange does."""
    return {
        "gathered": link(mesh, lambda x: mesh.gather(x[0])),
        "reduced": link(mesh, mesh.scatter),
        "summed": link(mesh, lambda x: mesh.sum(x[0]), 2 / mesh.data),
    }


def between(here, there):
    """The mean of both, since what else the machine does changes."""
    return {
        kind: Link(*[(a + b) / 2 for a, b in zip(here[kind], there[kind], strict=True)])
        for kind in here
    }


def stepping(mesh, plan, rounds=24):
    """The time of a step's exchanges, each of the rank that comes last; and how many there are."""
    ours, data, found = Ours(mesh, plan), batches(), []
    for i in range(rounds):
        mesh.gather(torch.zeros(1))
        with Exchanging() as exchanging:
            ours(data[i % len(data)])
        each = zip(*mesh.exchange(exchanging.seconds), strict=True)
        found.append(sum(map(min, each)))  # the rank that comes last to one waits for nobody
    with Traffic() as traffic:
        ours(data[0])
    return quick(found), fl.summary(ours.step, ours.state).sharded, traffic


def expected(mesh, told, traffic, by_kind):
    """What the formulas say; gates and metrics are exchanges too, of a few bytes."""
    total, gates = 0.0, sum(traffic.calls.values())
    for row in told.exchanges:
        own = by_kind[next(kind for kind in by_kind if kind in row.what)]
        gates -= row.times or row.rounds
        total += machine(mesh, own).ring(row.bytes, row.rounds, mesh.data)
    return total + machine(mesh, by_kind["gathered"]).ring(0, gates, mesh.data)


def machine(mesh, own):
    """All ranks in one, with one kind of connection."""
    return Machine(1e12, 1.0, 1e12, 1e12, mesh.data, own, own)


def main():
    """Print on rank 0 what was measured, and what was expected."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    mesh = fl.mesh(timeout=300)
    say = print if mesh.rank == 0 else lambda *_: None
    for plan in ("replicate", "zero2", "zero3"):
        before = links(mesh)
        taken, told, traffic = stepping(mesh, plan)
        own = between(before, links(mesh))
        for kind, one in own.items():
            say(f"  {kind:9} {one.speed / 1e9:5.2f} GB/s, {one.latency * 1e6:5.0f} us")
        told = expected(mesh, told, traffic, own)
        say(
            f"{plan:9} exchanges of a step: expected {1e3 * told:6.1f} ms, "
            f"taken {1e3 * taken:6.1f} ms, ratio {taken / told:.2f}"
        )


if __name__ == "__main__":
    main()
