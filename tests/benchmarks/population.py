"""Many small models as one step. From the root of a clone:

    python -m tests.benchmarks.population
    python -m tests.benchmarks.population --members 8 --batches 64 --rounds 10
    python -m tests.benchmarks.population --jax-python ../jax/bin/python

Perceptrons of 64-128-128-10 are trained by AdamW, all on the same batches: as one step, a compiled
`fl.ensemble`, vmapped and with ``mode="loop"``; by the compiled step of a single one, called for
each in turn; by a loop over models in plain PyTorch, with its fused AdamW; and by JAX with optax,
if some Python has them, as ``jit(vmap(step))`` with donated buffers. fnloop's step looks for values
that are not finite, and reports; JAX's and the plain loop's return the loss.

All run side by side on one thread, in many short rounds. Times are those of the processor, for a
step of all members; ratios are medians over the rounds, next to what is between their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

import fnloop as fl

from . import machine, problems
from .compare_checkouts import markdown
from .loops import looped
from .piped import Worker
from .problems import LR, WEIGHT_DECAY, Problem
from .steps import check_losses
from .timing import Block, interleave, steps_in, summary
from .worker import CHECKED, named

WORKER = Path(__file__).with_name("population_jax.py")

VMAPPED, LOOPED = "fl.ensemble", 'fl.ensemble, mode="loop"'
SINGLES, HAND, JAX = "a compiled step for each", "a plain loop for each", "JAX"
BASELINES = (SINGLES, HAND, JAX)

FEW = 16
"""Members up to which one after the other is compiled as one step: it has a graph for each."""

JAX_ON_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # see machine.py
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


Trained: TypeAlias = tuple[Block, Callable[[], float]]
"""A block of steps, and the mean of the members' losses in the last one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table in Markdown; 1 where something failed."""
    options = _parser().parse_args(arguments)
    machine.limit(1)
    lines, failed = [], 0
    for size in options.batches:
        try:
            lines += compare(options.members, size, options.rounds, options.jax_python)
        except (RuntimeError, ValueError) as error:
            print(f"FAILED batches of {size}: {error}", file=sys.stderr, flush=True)
            failed = 1
    columns = [f"to {name}, IQR" for name in BASELINES]
    print("\n".join(markdown(["batch", "", "us", *columns], lines)))
    return failed


def compare(members: int, size: int, rounds: int, python: str | None) -> list[list[str]]:
    """The lines of the table for batches of a size; who fails is said, and left out.

    Args:
        members: How many models.
        size: Examples in a batch.
        rounds: How often each is timed.
        python: An interpreter that has JAX, if there is one.

    Raises:
        ValueError: After the same steps from the same weights, losses differ.
    """
    problem, models = population(members, size)
    blocks: dict[str, Block] = {}
    losses: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        builds: dict[str, Callable[[], Trained]] = {
            VMAPPED: lambda: ensemble(problem, models, "vmap"),
            SINGLES: lambda: singles(problem, models),
            HAND: lambda: by_hand(problem, models),
        }
        if members <= FEW:
            builds[LOOPED] = lambda: ensemble(problem, models, "loop")
        if python is not None:
            builds[JAX] = lambda: piped(stack, python, problem, models)
        for name, build in builds.items():
            try:
                block, loss = build()
                block(CHECKED)
                losses[name] = loss()
            except Exception as error:  # whatever it is, the others can be measured
                print(f"left out: {name}, batches of {size}: {error!r}", file=sys.stderr)
            else:
                blocks[name] = block
        check_losses(losses, problem.rtol)
        steps = max(4, *(steps_in(0.03, block) for block in blocks.values()))
        samples = interleave(blocks, rounds, steps, warmup=4)
    lines = [[str(size), name, f"{statistics.median(us):.0f}"] for name, us in samples.items()]
    for baseline in BASELINES:
        rows = summary(samples, baseline) if baseline in samples else [None] * len(lines)
        for line, row in zip(lines, rows, strict=True):
            line.append("" if row is None else f"{row.ratio:.3f}, {row.noise:.3f}")
    return lines


def population(members: int, size: int) -> tuple[Problem, list[nn.Module]]:
    """The `problems.mlp` with batches of a size, and models that begin differently."""
    mlp, g = problems.mlp(), torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(size, 64, generator=g), torch.randint(10, (size,), generator=g))
        for _ in mlp.batches
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp._replace(batches=batches), [mlp.build() for _ in range(members)]


def ensemble(problem: Problem, models: Sequence[nn.Module], mode: str) -> Trained:
    """One compiled step of all models."""
    step = single(problem)
    many = fl.ensemble(step, len(models), mode=mode)
    state = many.init([step.init(model) for model in models])
    compiled = fl.compile(many, donate=True)

    def one(batch: Any) -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics["loss"]

    return looping(problem, one, lambda loss: loss.value().mean())


def by_hand(problem: Problem, models: Sequence[nn.Module]) -> Trained:
    """A loop of PyTorch over copies of the models, not compiled."""
    mine = copy.deepcopy(list(models))
    optimizers = [
        torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY, fused=True)
        for model in mine
    ]

    def one(batch: Any) -> Any:
        losses = []
        for model, optimizer in zip(mine, optimizers, strict=True):
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return looping(problem, one, lambda losses: statistics.mean(map(float, losses)))


def singles(problem: Problem, models: Sequence[nn.Module]) -> Trained:
    """The compiled step of one model, for each in turn."""
    step = fl.compile(single(problem), donate=True)
    states = [step.init(model) for model in models]

    def one(batch: Any) -> Any:
        losses = []
        for i, state in enumerate(states):
            states[i], metrics = step(state, batch)
            losses.append(metrics["loss"])
        return losses

    return looping(problem, one, lambda losses: statistics.mean(map(float, losses)))


def single(problem: Problem) -> Any:
    """The step of one model."""
    adamw = named("optim.adamw", "adamw")(LR, weight_decay=WEIGHT_DECAY)
    return fl.pipe(problem.loss, fl.grad, fl.update(adamw))


def looping(problem: Problem, one: Callable[[Any], Any], read: Callable[[Any], Any]) -> Trained:
    """Steps one after the other; `read` makes a number of what the last one reports."""
    training = looped(problem, time.process_time, one, lambda last: float(read(last)))
    return training.block, training.loss


def piped(
    stack: contextlib.ExitStack, python: str, problem: Problem, models: Sequence[nn.Module]
) -> Trained:
    """JAX, in a process of its own until the stack is closed."""
    worker = stack.enter_context(Worker([python, str(WORKER)], JAX_ON_ONE_THREAD))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "population.npz"
        np.savez(file, **arrays(problem, models))
        worker.ask(do="prepare", file=str(file), lr=LR, weight_decay=WEIGHT_DECAY)
    return worker.block, lambda: worker.ask(do="loss")["loss"]


def arrays(problem: Problem, models: Sequence[nn.Module]) -> dict[str, Any]:
    """Batches ``x``, ``y``; and by name the stacked parameters, matrices as (in, out)."""
    xs, ys = zip(*problem.batches, strict=True)
    found = {"x": torch.stack(xs).numpy(), "y": torch.stack(ys).numpy().astype(np.int32)}
    for name, _ in models[0].named_parameters():
        leaves = torch.stack([model.get_parameter(name).detach() for model in models])
        found[name] = (leaves.mT if leaves.ndim == 3 else leaves).contiguous().numpy()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.population",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--members", type=int, default=64, help="default: 64")
    parser.add_argument("--batches", type=_numbers, default=[64, 8], help="default: 64,8")
    parser.add_argument("--rounds", type=int, default=30, help="default: 30")
    here = sys.executable if all(map(importlib.util.find_spec, ("jax", "optax"))) else None
    parser.add_argument("--jax-python", default=here, help="a Python that has JAX and optax")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
