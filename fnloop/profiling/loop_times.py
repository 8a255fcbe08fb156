"""Steps as `fl.run` does them, and how long they wait for data."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

from fnloop.data.batches import START
from fnloop.data.sources import Source
from fnloop.loop.run import run
from fnloop.profiling.stage_clock import wait_for
from fnloop.values.cursor import Cursor
from fnloop.values.state import State

WARM = 4
"""Batches before those that are measured: the second has the layout that a step leaves behind, and
the first few are slower. Where a call does several steps, its first and second are left out."""

KEPT = 2
"""Batches that are kept, to run more steps on them."""


class LoopTimes(NamedTuple):
    """What a loop has taken.

    Attributes:
        first: Seconds of the first step; one that is compiled is compiled in it.
        seconds: Of a step, data included.
        waiting: Of these, for the next batch.
        fastest: Of the shortest step, without waiting.
        steps: How many were measured.
        batches: The last ones.
    """

    first: float
    seconds: float
    waiting: float
    fastest: float
    steps: int
    batches: list[Any]


class _Watched:
    """A source that notes how long each batch takes to come."""

    def __init__(self, source: Source) -> None:
        self.batches = source.batches
        self.waits: list[float] = []
        self.last: list[Any] = []
        self._source = source

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """See `Source.iterate`."""
        with closing(self._source.iterate(cursor, key)) as batches:
            while True:
                began = time.perf_counter()
                drawn = next(batches, None)
                self.waits.append(time.perf_counter() - began)
                if drawn is None:
                    return
                self.last = [*self.last[1 - KEPT :], drawn[1]]
                yield drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def timed_loop(step: Any, state: State, source: Source, steps: int) -> LoopTimes:
    """Run `steps` steps from `state`, which stays valid, and a few before them to warm up.

    Steps write over the states between, as those of `fl.fit` do.

    Raises:
        ValueError: There is no batch.
    """
    watched, device = _Watched(source), state.step.device
    many: int = getattr(step, "steps", 1)  # in one call
    warm = WARM if many == 1 else 1 + many
    step = as_in_fit(step)
    first, began = 0.0, time.perf_counter()
    last, done, measured = began, 0, 0
    fastest = math.inf
    for after, _ in run(step, state.replace(), watched, steps=warm + steps):
        before, done = done, len(watched.waits)
        if not first:
            int(after.step.sum())  # waits for the device
            first = time.perf_counter() - began - watched.waits[0]
        if done <= warm:
            wait_for(device)
            began, measured = time.perf_counter(), done
            last = began
        else:
            now = time.perf_counter()
            own = now - last - sum(watched.waits[before:done])
            fastest, last = min(fastest, own / (done - before)), now
        del after  # a state that is still referred to cannot be overwritten
    wait_for(device)
    seconds = time.perf_counter() - began
    count = done - measured
    if not count:
        raise ValueError(
            f"fl.profile takes data with more than {warm} batches, as the first ones only warm up, "
            f"and this ended after {done}. Give it a list of a few batches: it is read again."
        )
    waiting = sum(watched.waits[measured:done])
    if device.type != "cpu":  # which computes while the next batch is drawn
        alone = _alone(step, state, watched.last, count)
        waiting = min(waiting, max(0.0, seconds - alone))
        fastest = alone / count
    return LoopTimes(first, seconds / count, waiting / count, fastest, count, watched.last)


def _alone(step: Any, state: State, batches: list[Any], count: int) -> float:
    """Seconds of `count` steps for which the data is there."""
    turns = [batches[i % len(batches)] for i in range(count + WARM)]
    began = time.perf_counter()
    state = state.replace(cursor=Cursor().tensor())
    for i, (after, _) in enumerate(run(step, state, turns, steps=len(turns)), start=1):
        if i == WARM:
            wait_for(after.step.device)
            began = time.perf_counter()
        del after
    wait_for(state.step.device)
    return time.perf_counter() - began


def as_in_fit(step: Any) -> Any:
    """The step as `fl.fit` calls it: it writes over states where it can."""
    make: Any = getattr(step, "donating", None)
    return step if make is None else make()
