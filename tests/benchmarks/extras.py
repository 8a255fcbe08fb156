"""What `fl.fit` adds to a bare `fl.run`, and that to a ``for``: history, callbacks, trackers."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fnloop as fl

from .loops import Clocked
from .problems import Problem
from .timing import Block, Clock, Row, interleave, summary, timed
from .with_fnloop import Screen, pipeline

Callbacks = Callable[[Path], list[Any]]


def idle(problem: Problem) -> tuple[Callable[[fl.State, Any], Any], fl.State]:
    """A step that reports metrics and does nothing: what is around it shows above the noise."""
    real = pipeline(problem)
    state = real.init(problem.model())
    _, metrics = real(state, problem.batches[0])
    return lambda state, batch: (state.replace(step=state.step), dict(metrics)), state


def loop(problem: Problem, clock: Clock) -> Block:
    """A ``for`` statement, and nothing else."""
    step, state = idle(problem)

    def steps(n: int) -> None:
        nonlocal state
        for batch in itertools.islice(itertools.cycle(problem.batches), n):
            state, _ = step(state, batch)

    return timed(steps, clock)


def run(problem: Problem, clock: Clock) -> Block:
    """A bare `fl.run`."""
    step, state = idle(problem)

    def block(n: int) -> float:
        batches = Clocked(problem.batches, n, clock)
        for _ in fl.run(step, state, batches, steps=batches.steps):
            pass
        return batches.seconds()

    return block


def stored(problem: Problem, clock: Clock) -> Block:
    """`fl.run` over a list of batches, which draws no random numbers."""
    step, state = idle(problem)
    turns = fl.run(step, state, problem.batches)

    def steps(n: int) -> None:
        for _ in itertools.islice(turns, n):
            pass

    return timed(steps, clock)


def fit(problem: Problem, clock: Clock, folder: Path, callbacks: Callbacks) -> Block:
    """`fl.fit` with callbacks, made anew for each block."""
    step, state = idle(problem)

    def block(n: int) -> float:
        batches = Clocked(problem.batches, n, clock)
        here = Path(tempfile.mkdtemp(dir=folder))
        fl.fit(step, state, batches, steps=batches.steps, callbacks=callbacks(here))
        return batches.seconds()

    return block


def contenders(problem: Problem, clock: Clock, folder: Path) -> dict[str, Block]:
    """By name; all hooks and trackers at their default cadence, validation never due."""
    validation = problem.batches[:1]

    def progress(here: Path) -> list[Any]:
        return [fl.progress(file=Screen())]

    def hooks(here: Path) -> list[Any]:
        return [
            fl.every(1_000_000, fl.validate(problem.loss, validation)),
            fl.early_stopping("val/loss"),
        ]

    def jsonl(here: Path) -> list[Any]:
        return [fl.track(fl.trackers.JSONL(here / "run.jsonl"))]

    def aim(here: Path) -> list[Any]:
        return [fl.track(fl.trackers.Aim(folder))]  # one repository, as in real life

    several: dict[str, Callbacks] = {
        "fit": lambda here: [],
        "fit, progress": progress,
        "fit, validation and early stopping": hooks,
        "fit, JSONL": jsonl,
        "fit, Aim": aim,
        "fit, all with JSONL": lambda here: progress(here) + hooks(here) + jsonl(here),
        "fit, all with Aim": lambda here: progress(here) + hooks(here) + aim(here),
    }
    fits = {name: fit(problem, clock, folder, callbacks) for name, callbacks in several.items()}
    loops = {"for": loop, "run, a list of batches": stored, "run": run}
    return {**{name: make(problem, clock) for name, make in loops.items()}, **fits}


def compare(
    problem: Problem, rounds: int = 20, steps: int = 500, clock: Clock = time.perf_counter
) -> list[Row]:
    """All contenders, against the bare `fl.run`.

    Args:
        problem: What to train.
        rounds: How often each is timed.
        steps: In a round.
        clock: What to time with.
    """
    with tempfile.TemporaryDirectory() as folder:
        blocks = contenders(problem, clock, Path(folder))
        samples = interleave(blocks, rounds, steps, warmup=60)
    return summary(samples, "run")
