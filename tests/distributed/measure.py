"""Measure plans beside DDP and FSDP2: ``torchrun --nproc-per-node 2 -m tests.distributed.measure``.

Sizes are in units of the parameters. The losses of all must be the same. With ``times`` behind it,
it times steps instead.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fnloop as fl
from tests.distributed.live import Live
from tests.distributed.traffic import Traffic

WIDTH, LAYERS, ROWS = 512, 12, 36


def model():
    """A deep perceptron, so that no layer is a large part of it."""
    torch.manual_seed(0)
    layers = [part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def loss(m, batch):
    """Cross-entropy."""
    return F.cross_entropy(m(batch[0]), batch[1])


def batches(n=4):
    """The same on all ranks."""
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(ROWS, WIDTH, generator=g), torch.randint(0, 10, (ROWS,), generator=g))
        for _ in range(n)
    ]


class Ours:
    """A step of fnloop, eager or compiled by a backend; `donate` is that of `fl.compile`."""

    def __init__(self, mesh, plan, k=1, donate=False, compiled=None, reduce="fast"):
        stages = [fl.accumulate(k)] if k > 1 else []
        chain = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-3))
        step = fl.pipe(loss, fl.grad, *stages, fl.update(chain))
        if plan is not None:
            step = fl.shard(step, mesh, plan, reduce=reduce)
        if compiled is not None:
            step = fl.compile(step, backend=compiled, donate=donate)
        self.step, self.state = step, step.init(model())

    def __call__(self, batch):
        self.state, metrics = self.step(self.state, batch)
        return metrics["loss"]

    def held(self):
        """Bytes of parameters and moments."""
        tensors = fl.tree_leaves((self.state.params, self.state.slots))
        return sum(t.nbytes for t in tensors)


class Theirs:
    """A loop by hand around DDP or FSDP2."""

    def __init__(self, kind, mesh):
        self.mesh, self.model = mesh, model()
        if kind == "DDP":
            self.model = DistributedDataParallel(self.model)
        else:
            grid = init_device_mesh("cpu", (mesh.data,))
            for layer in self.model:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=grid)
            fully_shard(self.model, mesh=grid)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.01)

    def __call__(self, batch):
        x, y = (t.chunk(self.mesh.data)[self.mesh.rank] for t in batch)
        self.optimizer.zero_grad()
        mean = F.cross_entropy(self.model(x), y)
        mean.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return mean.detach()

    def held(self):
        """Bytes of parameters and moments."""
        moments = [t for own in self.optimizer.state.values() for t in own.values()]
        local = [getattr(t, "_local_tensor", t) for t in (*self.model.parameters(), *moments)]
        return sum(t.nbytes for t in local)


def contenders(mesh):
    """What is measured, by name."""
    return {
        "one process, whole batch": lambda: Ours(mesh, None),
        "replicate": lambda: Ours(mesh, "replicate"),
        "replicate, accumulate(2)": lambda: Ours(mesh, "replicate", 2),
        "replicate, canonical of 4": lambda: Ours(mesh, "replicate", 4, reduce="canonical"),
        "zero2": lambda: Ours(mesh, "zero2"),
        "zero3": lambda: Ours(mesh, "zero3"),
        "zero3, accumulate(2)": lambda: Ours(mesh, "zero3", 2),
        "torch DDP": lambda: Theirs("DDP", mesh),
        "torch FSDP2": lambda: Theirs("FSDP2", mesh),
    }


def timed(mesh):
    """What is timed, by name: each plan eager, and compiled with the state given away."""
    every = contenders(mesh)
    chosen = {n: every[n] for n in every if "accumulate" not in n and "canonical" not in n}
    for plan in ("replicate", "zero2", "zero3"):
        chosen[f"{plan}, compiled"] = lambda plan=plan: Ours(
            mesh, plan, donate=True, compiled="inductor"
        )
    return chosen


def sizes(make):
    """Bytes held between steps, the most that a step adds, what it moves, and its last loss."""
    train, data = make(), batches()
    losses = [float(train(batch)) for batch in data]
    gc.collect()
    with Live() as live:
        train(data[0])
    with Traffic() as traffic:
        train(data[0])
    return train.held(), live.peak, traffic, losses[-1]


def times(mesh, makers, rounds=15):
    """Milliseconds of a step of each, in turns, so that a busy moment hits all of them."""
    trains, data = {name: make() for name, make in makers.items()}, batches()
    found = {name: [] for name in makers}
    for i in range(rounds + 3):
        for name, train in trains.items():
            dist.barrier()
            start = time.perf_counter()
            for batch in data:
                train(batch)
            if i >= 3:
                found[name].append(max(mesh.exchange(time.perf_counter() - start)) / len(data))
    return {name: [1e3 * each for each in values] for name, values in found.items()}


def main():
    """Print the tables on rank 0."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    mesh = fl.mesh(timeout=300)
    say = print if mesh.rank == 0 else lambda *_: None
    size = sum(p.nbytes for p in model().parameters())
    if "times" not in sys.argv:
        say(f"{mesh.data} ranks, parameters of {size / 1e6:.1f} MB (P)")
        for name, make in contenders(mesh).items():
            held, peak, traffic, last = sizes(make)
            each = ", ".join(f"{n} {kind}" for kind, n in traffic.calls.items())
            mean = sum(mesh.exchange(last)) / mesh.data
            say(
                f"{name:27} held {held / size:5.2f} P  a step adds {peak / size:5.2f} P  "
                f"moves {traffic.total / size:5.2f} P in {each}  loss {mean:.6f}"
            )
    else:
        found = times(mesh, timed(mesh))
        base = found["torch DDP"]
        for name, each in found.items():
            ratios = [a / b for a, b in zip(each, base, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            spread = f"{middle:.2f} of DDP ({low:.2f}-{high:.2f})"
            say(f"{name:27} {statistics.median(each):7.1f} ms  {spread}")


if __name__ == "__main__":
    main()
