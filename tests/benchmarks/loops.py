"""What all contenders have in common: a block of training steps that is timed, and a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .problems import Problem
from .timing import Block, Clock

TOGETHER = 8
"""Steps in a call, for those that make several."""


class Training(NamedTuple):
    """A contender at work on a problem.

    Attributes:
        block: Make exactly so many more steps; return the seconds that they took.
        loss: The loss of the last step, as a number.
        graphs: How many graphs have been compiled, where that is known.
    """

    block: Block
    loss: Callable[[], float]
    graphs: Callable[[], int] | None = None


def looped(
    problem: Problem,
    clock: Clock,
    step: Callable[[Any], Any],
    read: Callable[[Any], float] = float,
    wait: Callable[[Any], Any] = lambda loss: None,
    batches: Sequence[Any] | None = None,
    graphs: Callable[[], int] | None = None,
    each: int = 1,
) -> Training:
    """A loop of one's own around a step.

    Args:
        problem: What is trained.
        clock: What to time with.
        step: Trains on a batch, returns the loss.
        read: The loss as a number.
        wait: Waits until the loss is computed.
        batches: Default: those of the problem.
        graphs: As in `Training`.
        each: How many steps a call of `step` makes, of which each of `batches` has as many. Where
            a block ends within a call, the seconds are those of its part.
    """
    source = itertools.cycle(problem.batches if batches is None else batches)
    log: list[float] = []
    loss: Any = None

    def block(n: int) -> float:
        nonlocal loss
        calls = -(-n // each)
        start = clock()
        if problem.reads_loss:
            for batch in itertools.islice(source, calls):
                loss = step(batch)
                log.append(read(loss))
        else:
            for batch in itertools.islice(source, calls):
                loss = step(batch)
            wait(loss)
        return (clock() - start) * n / (calls * each)

    return Training(block, lambda: read(loss), graphs)


def grouped(batches: Sequence[Any]) -> list[list[Any]]:
    """Batches for calls of `TOGETHER` steps."""
    return [list(batches[i : i + TOGETHER]) for i in range(0, len(batches), TOGETHER)]


def watched(
    problem: Problem,
    clock: Clock,
    fit: Callable[[Clocked], Any],
    loss: Callable[[], float],
    batches: Sequence[Any] | None = None,
    kind: type[Clocked] | None = None,
    graphs: Callable[[], int] | None = None,
) -> Training:
    """A loop that somebody else owns, timed from batch to batch.

    Opening and closing it and its first steps are not timed: the seconds of a block are those of
    its later steps, as if all had been like these.

    Args:
        problem: What is trained.
        clock: What to time with.
        fit: Trains on all batches that it is given, as many steps as they say.
        loss: Of the last step.
        batches: Default: those of the problem; several make a step where it has micro-batches.
        kind: Of batches that `fit` wants; default `Clocked`.
        graphs: As in `Training`.
    """
    source = problem.batches if batches is None else batches
    each = len(source) // len(problem.batches)

    def block(n: int) -> float:
        before = min(10, n // 4) * each
        timed = (n * each) - 1 - before
        clocked = (kind or Clocked)(source, timed, clock, before)
        fit(clocked)
        return clocked.seconds() * n * each / timed

    return Training(block, loss, graphs)


class Clocked(Iterable[Any]):
    """Batches that look at the clock as they are drawn.

    Args:
        batches: Given in turn, without end.
        n: Batches to time; some are drawn before that.
        clock: What to time with.
        before: How many.
    """

    def __init__(self, batches: Sequence[Any], n: int, clock: Clock, before: int = 10) -> None:
        self.steps = before + n + 1  # the last look ends the last step that counts
        self._batches = batches
        self._clock = clock
        self._before = before
        self._looks: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.cycle(self._batches):
            self._looks.append(self._clock())
            yield batch

    def seconds(self) -> float:
        """From the first batch that is timed to the last."""
        # A batch may be read ahead, so that there may be a look more than steps.
        return self._looks[self.steps - 1] - self._looks[self._before]


class Sized(Clocked):
    """The same with a length, for those that ask how long an epoch is."""

    def __len__(self) -> int:
        return self.steps
