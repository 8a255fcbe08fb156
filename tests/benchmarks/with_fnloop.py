"""fnloop's loops."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import fnloop as fl

from .by_hand import inductor_graphs
from .loops import TOGETHER, Clocked, Training, grouped, looped, watched
from .problems import LR, WEIGHT_DECAY, Problem
from .timing import Clock

Transform = Callable[[fl.base.StepStage], fl.base.StepStage]


def pipeline(problem: Problem) -> fl.base.StepStage:
    """fnloop's step."""
    around: list[Any] = []
    if problem.micro > 1:
        around.append(fl.accumulate(problem.micro))
    if problem.bf16:
        around.append(fl.amp("bf16"))
    optimizer = fl.optim.adamw(LR, weight_decay=WEIGHT_DECAY)
    return fl.pipe(problem.loss, fl.grad, *around, fl.update(optimizer))


def alone(
    problem: Problem, clock: Clock, transform: Transform = lambda step: step, compiled: bool = False
) -> Training:
    """The step, in a loop of one's own."""
    step = transform(pipeline(problem))
    state = step.init(problem.model())

    def one(batch: Any) -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return looped(problem, clock, one, graphs=inductor_graphs if compiled else None)


def together(problem: Problem, clock: Clock) -> Training:
    """Calls of several steps, compiled and donated, in a loop of one's own."""
    step = fl.compile(pipeline(problem), donate=True, steps=TOGETHER)
    state = step.init(problem.model())

    def one(batches: Any) -> Any:
        nonlocal state
        state, metrics = step(state, batches)
        return [reported["loss"] for reported in metrics]

    return looped(
        problem,
        clock,
        one,
        read=lambda losses: [float(loss) for loss in losses][-1],
        batches=grouped(problem.batches),
        graphs=inductor_graphs,
        each=TOGETHER,
    )


def run(
    problem: Problem, clock: Clock, transform: Transform = lambda step: step, compiled: bool = False
) -> Training:
    """`fl.run`."""
    step = transform(pipeline(problem))
    # What makes the state must not keep it: a step that is donated its state owns it.
    loop = fl.run(step, step.init(problem.model()), problem.batches)

    def one(_: None) -> Any:
        return next(loop)[1]["loss"]

    graphs = inductor_graphs if compiled else None
    return looped(problem, clock, one, batches=[None], graphs=graphs)


def fit(
    problem: Problem,
    clock: Clock,
    transform: Transform = lambda step: step,
    compiled: bool = False,
    bar: bool = True,
) -> Training:
    """`fl.fit`, with a progress bar if asked for; the history it keeps by itself."""
    step = transform(pipeline(problem))
    state = step.init(problem.model())
    last = _Last(problem.reads_loss)
    shown = [fl.progress(file=Screen())] if bar else []

    def train(batches: Clocked) -> None:
        nonlocal state
        callbacks = [*shown, fl.effect(last)]
        state, _ = fl.fit(
            step, state, iter(batches), steps=batches.steps, callbacks=callbacks, progress=False
        )

    graphs = inductor_graphs if compiled else None
    return watched(problem, clock, train, lambda: float(last.metrics["loss"]), graphs=graphs)


class Screen(io.TextIOBase):
    """A terminal on which nobody looks: bars are drawn on it."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


class _Last:
    """The last metrics; and, if it reads, every loss as a number."""

    def __init__(self, reads: bool) -> None:
        self._reads = reads
        self._log: list[float] = []

    def __call__(self, state: fl.State, metrics: Mapping[str, Any]) -> None:
        self.metrics = metrics
        if self._reads:
            self._log.append(float(metrics["loss"]))
