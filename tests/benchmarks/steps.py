"""The cost of a training step: loops written by hand, and fnloop's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

import fnloop as fl

from .problems import Problem
from .timing import Block, Clock, Row, fastest, interleave, steps_in, summary, timed

Steps: TypeAlias = Callable[[int], None]


def by_hand(problem: Problem, **options: Any) -> Steps:
    """The loop of PyTorch's tutorials."""
    model = problem.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    batches = itertools.cycle(problem.batches)

    def steps(n: int) -> None:
        for batch in itertools.islice(batches, n):
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            optimizer.step()

    return steps


def by_hand_with_loss(problem: Problem, **options: Any) -> Steps:
    """The same, keeping a running loss: what most real loops do at least."""
    model = problem.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    batches = itertools.cycle(problem.batches)
    total = torch.zeros(())

    def steps(n: int) -> None:
        nonlocal total
        for batch in itertools.islice(batches, n):
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            optimizer.step()
            total = total + loss.detach()

    return steps


def pipeline(problem: Problem) -> fl.StepStage:
    """fnloop's step."""
    return fl.pipe(problem.loss, fl.grad, fl.update(fl.adamw(1e-3)))


def step_alone(problem: Problem) -> Steps:
    """fnloop's step in a loop of one's own."""
    step = pipeline(problem)
    state = step.init(problem.model())
    batches = itertools.cycle(problem.batches)

    def steps(n: int) -> None:
        nonlocal state
        for batch in itertools.islice(batches, n):
            state, _ = step(state, batch)

    return steps


def run(problem: Problem) -> Steps:
    """`fl.run`."""
    step = pipeline(problem)
    loop = fl.run(step, step.init(problem.model()), problem.batches)

    def steps(n: int) -> None:
        for _ in itertools.islice(loop, n):
            pass

    return steps


def contenders(problem: Problem) -> dict[str, Steps]:
    """By name; those that are written by hand have names that begin so."""
    return {
        "by hand, fused": by_hand(problem, fused=True),
        "by hand, foreach": by_hand(problem, foreach=True),
        "by hand, default": by_hand(problem),
        "by hand, fused, running loss": by_hand_with_loss(problem, fused=True),
        "fnloop, step alone": step_alone(problem),
        "fnloop, run": run(problem),
    }


def compare(
    problem: Problem, rounds: int = 60, seconds: float = 0.02, clock: Clock = time.perf_counter
) -> list[Row]:
    """All contenders, against the fastest of those by hand that keep no loss.

    Args:
        problem: What to train.
        rounds: How often each is timed.
        seconds: How long each time.
        clock: What to time with.
    """
    blocks: dict[str, Block] = {
        name: timed(steps, clock) for name, steps in contenders(problem).items()
    }
    steps = steps_in(seconds, blocks["by hand, fused"])
    samples = interleave(blocks, rounds, steps, warmup=2 * steps)
    bare = [name for name in blocks if name.startswith("by hand") and "loss" not in name]
    return summary(samples, fastest(samples, bare))
