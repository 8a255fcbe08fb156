"""The whole truth on one screen: a line for each model, what is behind first.

A figure that misses its goal is bold. The goals: a compiled and donated step takes at most the time
of the best loop by hand, and of JAX; an eager one in `fl.fit` at most 1.05 times that of the eager
loop by hand (1.10 for the two smallest models, of which `logged` is one); memory at its peak is at
most that of the loop by hand that needs less of it, eager or compiled; a first call takes at most
the time of ``torch.compile``'s, one with the caches of an earlier process at most 1.2 times that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .contenders import DONATED, DONATED_TOGETHER, FUSED, JAX, JAX_TOGETHER
from .models import MODELS
from .report import table
from .results import Results

CASES: Sequence[str] = ("mlp", "narrow", "many", "logged", "cnn", "gpt", *MODELS)

COMPILED = "by hand, compiled loss"
FIT = "fnloop, eager, fit"

TIMED: Sequence[str] = (
    FUSED,
    "by hand, fused, again",
    "by hand, fused, channels last",
    COMPILED,
    "by hand, compiled loss, C++ wrapper",
    "by hand, compiled loss, max-autotune",
    "by hand, compiled loss, channels last",
    "by hand, compiled loss, layouts kept",
    "by hand, compiled loss and optimizer",
    JAX,
    JAX_TOGETHER,
    FIT,
    DONATED,
    "fnloop, compiled, donated, fit",
    DONATED_TOGETHER,
)
FIRST: Sequence[str] = (COMPILED, DONATED)
WEIGHED: Sequence[str] = (FUSED, COMPILED, FIT, DONATED)

PAGES = 0.25
"""Megabytes by which the same contender differs from process to process."""

SMALLEST = ("mlp", "logged", "narrow")


class Figure(NamedTuple):
    """A cell: what was measured, as a multiple of its goal; beyond 1 it is behind.

    Attributes:
        text: As it is shown.
        of_goal: None where there is no goal, or nothing was measured.
        slack: How much more than the goal is not told from it.
    """

    text: str = ""
    of_goal: float | None = None
    slack: float = 0.0

    def is_behind(self) -> bool:
        """Whether it misses its goal by more than the noise."""
        return self.of_goal is not None and self.of_goal > 1 + max(self.slack, 0.005)

    def __str__(self) -> str:
        return f"**{self.text}**" if self.is_behind() else self.text


class Line(NamedTuple):
    """A model's figures.

    Attributes:
        case: The model.
        best: The loop by hand that is the fastest, and its time.
        steps: Of the time of a step.
        others: Of memory and first calls, each with the text of what it is compared with.
    """

    case: str
    best: str
    steps: Sequence[Figure]
    others: Sequence[tuple[str, Figure]]

    def behind(self) -> float:
        """The largest multiple of a goal for the time of a step."""
        return max((f.of_goal for f in self.steps if f.of_goal is not None), default=0.0)

    def cells(self) -> list[str]:
        """As they are shown."""
        others = [_beside(before, figure) for before, figure in self.others]
        return [f"`{self.case}`", self.best, *map(str, self.steps), *others]


NONE = "\N{EN DASH}"
HEAD = [
    *("", "best loop by hand", "compiled", "in `fit`", "eager in `fit`", "JAX"),
    *("8 a call: JAX / fnloop", "MB, eager", "MB, compiled", "first call, s", "again, s"),
]


def lines(results: Results) -> list[Line]:
    """What was measured on one thread, what is behind first."""
    found = [
        _line(case, figures, results.memory.get(case, {}), results.compile.get(case, {}))
        for case, figures in results.step.get(1, {}).items()
    ]
    return sorted(found, key=Line.behind, reverse=True)


def markdown(lines: Sequence[Line]) -> str:
    """The table."""
    return table(HEAD, [line.cells() for line in lines])


def drawn(step: Any) -> dict[str, float]:
    """The ratios that a chart shows, of those that were measured."""
    rows = {row["name"].removesuffix(" *"): row["ratio"] for row in step["rows"]}
    return {name: rows[name] for name in (FUSED, COMPILED, JAX, DONATED) if name in rows}


def _line(case: str, step: Any, memory: Mapping[str, Any], first: Mapping[str, Any]) -> Line:
    rows = {row["name"].removesuffix(" *"): row for row in step["rows"]}
    eager = {row["name"].removesuffix(" *"): row for row in step["eager"]}
    best = f"{step['baseline'].removeprefix('by hand, ')}, {_time(rows[step['baseline']])}"
    ratio = functools.partial(_ratio, step["rounds"])
    steps = [
        ratio(rows.get(DONATED)),
        ratio(rows.get("fnloop, compiled, donated, fit")),
        ratio(eager.get(FIT), 1.10 if case in SMALLEST else 1.05),
        _to_jax(ratio(rows.get(DONATED)), ratio(rows.get(JAX))),
    ]
    peaks = {n: f["peak"] * f["megabytes"] for n, f in memory.items() if "peak" in f}
    least = min((peaks[n] for n in (FUSED, COMPILED) if n in peaks), default=0.0)
    others = [
        _together(ratio(rows.get(JAX_TOGETHER)), ratio(rows.get(DONATED_TOGETHER))),
        _pair(peaks.get(FUSED), peaks.get(FIT), peaks.get(FUSED, 0.0), PAGES),
        _pair(peaks.get(COMPILED), peaks.get(DONATED), least, PAGES),
    ]
    for start, more in (("cold", 1.0), ("warm", 1.2)):
        by_hand, ours = (first.get(n, {}).get(start) for n in (COMPILED, DONATED))
        others.append(_pair(by_hand, ours, more * (by_hand or 0.0)))
    return Line(case, best, steps, others)


def _ratio(rounds: int, row: Any, goal: float = 1.0) -> Figure:
    """With the noise of a median: where two intervals like it do not meet, two medians differ."""
    if row is None:
        return Figure()
    noise = 1.57 * row["noise"] / math.sqrt(rounds)
    text = f"{row['ratio']:.2f} \N{PLUS-MINUS SIGN} {noise:.2f}"
    return Figure(text, row["ratio"] / goal, noise / goal)


def _to_jax(ours: Figure, jax: Figure) -> Figure:
    """JAX's ratio, which is bold where it is less than ours."""
    if ours.of_goal is None or jax.of_goal is None:
        return Figure()
    return Figure(jax.text, *_times(ours, jax))


def _together(jax: Figure, ours: Figure) -> tuple[str, Figure]:
    if ours.of_goal is None or jax.of_goal is None:
        return jax.text, Figure(ours.text)
    return jax.text, Figure(ours.text, *_times(ours, jax))


def _times(ours: Figure, jax: Figure) -> tuple[float, float]:
    """How many times JAX's ratio ours is, and the noise of that."""
    assert ours.of_goal is not None and jax.of_goal is not None
    times = ours.of_goal / jax.of_goal
    return times, times * (ours.slack / ours.of_goal + jax.slack / jax.of_goal)


def _beside(before: str, figure: Figure) -> str:
    if not before and not figure.text:
        return ""
    return f"{before or NONE} / {figure if figure.text else NONE}"


def _pair(
    by_hand: float | None, ours: float | None, goal: float, noise: float = 0.0
) -> tuple[str, Figure]:
    if ours is None:
        return "", Figure()
    before = "" if by_hand is None else _number(by_hand)
    return before, Figure(_number(ours), *((ours / goal, noise / goal) if goal else ()))


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _time(row: Any) -> str:
    us = row["median"]
    return f"{us:.0f} µs" if us < 1000 else f"{us / 1000:.1f} ms"
