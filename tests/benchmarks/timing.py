"""Time several things side by side on a machine that does other work too.

Each round times every contender once, for a few milliseconds, in a new random order; so whatever
slows the machine down for a while slows all of them down. What is compared is paired: a contender
with the baseline of the same round.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

Block: TypeAlias = Callable[[int], float]
"""Make so many steps; return the seconds that they took."""

Clock: TypeAlias = Callable[[], float]
"""Seconds: ``time.perf_counter``, or ``time.process_time`` where others use the machine too."""

Samples: TypeAlias = dict[str, list[float]]
"""Microseconds a step, one number a round, by contender."""


def used() -> float:
    """Seconds of the processor, those of processes that have ended included."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def timed(steps: Callable[[int], None], clock: Clock) -> Block:
    """A function that makes `n` steps, with a clock around it."""

    def block(n: int) -> float:
        start = clock()
        steps(n)
        return clock() - start

    return block


def interleave(blocks: Mapping[str, Block], rounds: int, steps: int, warmup: int) -> Samples:
    """Time all contenders in every round.

    Args:
        blocks: By contender.
        rounds: How often each is timed.
        steps: In a block.
        warmup: Steps that each makes first, untimed.
    """
    for block in blocks.values():
        block(warmup)
    samples: Samples = {name: [] for name in blocks}
    order, shuffle = list(blocks), random.Random(0).shuffle
    gc.collect()
    gc.freeze()  # or each collection would look at all of JAX, Lightning and Inductor again
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                gc.collect()
                gc.disable()
                try:
                    samples[name].append(blocks[name](steps) / steps * 1e6)
                finally:
                    gc.enable()
    finally:
        gc.unfreeze()
    return samples


def steps_in(seconds: float, block: Block) -> int:
    """How many steps take about so long, at least one."""
    block(2)
    once = min(block(1) for _ in range(5))
    return max(1, round(seconds / once))


class Row(NamedTuple):
    """A contender's figures.

    Attributes:
        name: Of the contender; the baseline's has a star.
        median: Microseconds a step.
        iqr: Between the quartiles of the rounds, in microseconds.
        least: Microseconds a step of the best round.
        ratio: To the baseline: the median over the rounds of the paired ratio.
        noise: Between the quartiles of that ratio.
        extra: Over the baseline, in microseconds: the median over the rounds of the difference.
    """

    name: str
    median: float
    iqr: float
    least: float
    ratio: float
    noise: float
    extra: float


def summary(samples: Samples, baseline: str) -> list[Row]:
    """A row for each contender."""
    base = samples[baseline]
    return [_row(name, times, base, name == baseline) for name, times in samples.items()]


def fastest(samples: Samples, names: Sequence[str]) -> str:
    """The contender among `names` with the smallest median."""
    return min(names, key=lambda name: statistics.median(samples[name]))


def table(title: str, rows: Sequence[Row]) -> str:
    """The rows as text."""
    cells = [["", "median us", "IQR", "least", "ratio", "IQR", "extra us"]]
    for name, *us, ratio, noise, extra in rows:
        us = [f"{x:.1f}" for x in us]
        cells.append([name, *us, f"{ratio:.3f}", f"{noise:.3f}", f"{extra:+.1f}"])
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines = [
        name.ljust(first) + "".join(x.rjust(n + 2) for x, n in zip(numbers, others, strict=True))
        for name, *numbers in cells
    ]
    return "\n".join([title, *lines, "* the baseline of ratio and extra"])


def _row(name: str, times: list[float], base: list[float], is_baseline: bool) -> Row:
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    return Row(
        name=f"{name} *" if is_baseline else name,
        median=statistics.median(times),
        iqr=_between_quartiles(times),
        least=min(times),
        ratio=statistics.median(ratios),
        noise=_between_quartiles(ratios),
        extra=statistics.median(a - b for a, b in zip(times, base, strict=True)),
    )


def _between_quartiles(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low
