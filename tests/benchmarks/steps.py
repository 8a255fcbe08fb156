"""The cost of a training step: all contenders on one problem, side by side in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from .contenders import FUSED, Contender, sort
from .loops import TOGETHER, Training
from .problems import Problem
from .timing import Clock, Row, Samples, fastest, interleave, steps_in, summary

CHECKED = 2 * TOGETHER  # steps after which the losses have to agree


class Result(NamedTuple):
    """What was measured on a problem.

    Attributes:
        rows: Of the contenders.
        baseline: The contender that ratios are to.
        eager: Of those that do not compile, against the fastest of them by hand.
        losses: After `CHECKED` steps, by contender.
        loop_us: What a loop adds to its step, in microseconds, for those whose step is there too.
        rounds: How often each was timed.
        steps: In a round.
        left_out: Those that took no part, with the reason.
    """

    rows: list[Row]
    baseline: str
    eager: list[Row]
    losses: dict[str, float]
    loop_us: dict[str, float]
    rounds: int
    steps: int
    left_out: dict[str, str]


def compare(
    problem: Problem,
    contenders: Sequence[Contender],
    rounds: int,
    seconds: float = 0.03,
    clock: Clock = time.perf_counter,
) -> Result:
    """All contenders, against the fastest of the group "by hand".

    Args:
        problem: What to train.
        contenders: Who trains; those whose library is not installed are left out.
        rounds: How often each is timed.
        seconds: How long each time, at least; 4 steps at least.
        clock: What to time with.

    Raises:
        ValueError: After the same number of steps from the same weights, losses differ.
        RuntimeError: Something compiled after warm-up.
    """
    present, left_out = sort(contenders, problem)
    trainings: dict[str, Training] = {}
    for contender in present:
        trainings[contender.name] = contender.build(problem, clock)
        trainings[contender.name].block(CHECKED)
    losses = {name: training.loss() for name, training in trainings.items()}
    check_losses(losses, problem.rtol)
    blocks = {name: training.block for name, training in trainings.items()}
    reference = FUSED if FUSED in blocks else next(iter(blocks))
    steps = max(4, steps_in(seconds, blocks[reference]))
    graphs = _graphs(trainings)
    samples = interleave(blocks, rounds, steps, warmup=4)
    if _graphs(trainings) != graphs:
        raise RuntimeError(
            f"{problem.name}: compiled while timed, graphs {graphs} -> {_graphs(trainings)}"
        )
    by_hand = [c.name for c in present if c.group == "by hand"]
    baseline = fastest(samples, by_hand or list(blocks))
    loop_us = {
        c.name: summary({n: samples[n] for n in (c.name, c.around)}, c.around)[0].extra
        for c in present
        if c.around in samples
    }
    rows, eager = summary(samples, baseline), _eager(samples, present)
    return Result(rows, baseline, eager, losses, loop_us, rounds, steps, left_out)


def check_losses(losses: dict[str, float], rtol: float) -> None:
    """Every loss is finite, and near the first.

    Raises:
        ValueError: One is not.
    """
    first, expected = next(iter(losses.items()))
    wrong = {
        name: loss
        for name, loss in losses.items()
        if not (math.isfinite(loss) and math.isclose(loss, expected, rel_tol=rtol))
    }
    if wrong:
        raise ValueError(
            f"Losses differ after the same steps from the same weights, by more than {rtol}: "
            f"{first} has {expected:.6f}, but {wrong}"
        )


def _eager(samples: Samples, present: Sequence[Contender]) -> list[Row]:
    """Of loops in the layouts that PyTorch has by itself, as fnloop's are."""
    there = [c for c in present if not c.compiles and not c.pictures and c.group != "peer"]
    by_hand = [c.name for c in there if c.group == "by hand"]
    if not by_hand:
        return []
    return summary({c.name: samples[c.name] for c in there}, fastest(samples, by_hand))


def _graphs(trainings: dict[str, Training]) -> dict[str, Any]:
    return {name: t.graphs() for name, t in trainings.items() if t.graphs is not None}
