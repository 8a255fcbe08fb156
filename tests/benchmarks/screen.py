"""The whole truth on one screen: a line for each model, what is behind first.

A figure that misses its goal is bold. The goals: a compiled and donated step takes at most the time
of the best loop by hand, and of JAX; an eager one in `fl.fit` at most 1.05 times that of the eager
loop by hand (1.10 where a step is shortest); memory at its peak is at most that of the loop that
needs less of it, by hand or by hand and compiled; a first call takes at most the time of
``torch.compile``'s, one with the caches of an earlier process at most 1.2 times that.
"""

from __future__ import annotations

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

SHORTEST = ("mlp", "logged")


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
        pairs = (f"{before} / {figure}" if figure.text else "" for before, figure in self.others)
        return [f"`{self.case}`", self.best, *map(str, self.steps), *pairs]


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
    steps = [
        _ratio(rows.get(DONATED)),
        _ratio(rows.get("fnloop, compiled, donated, fit")),
        _ratio(eager.get(FIT), 1.10 if case in SHORTEST else 1.05),
        _to_jax(rows.get(DONATED), rows.get(JAX)),
    ]
    peaks = {n: f["peak"] * f["megabytes"] for n, f in memory.items() if "peak" in f}
    least = min((peaks[n] for n in (FUSED, COMPILED) if n in peaks), default=0.0)
    others = [
        _together(rows.get(JAX_TOGETHER), rows.get(DONATED_TOGETHER)),
        _pair(peaks.get(FUSED), peaks.get(FIT), peaks.get(FUSED, 0.0)),
        _pair(peaks.get(COMPILED), peaks.get(DONATED), least),
    ]
    for start, more in (("cold", 1.0), ("warm", 1.2)):
        by_hand, ours = (first.get(n, {}).get(start) for n in (COMPILED, DONATED))
        others.append(_pair(by_hand, ours, more * (by_hand or 0.0)))
    return Line(case, best, steps, others)


def _ratio(row: Any, goal: float = 1.0) -> Figure:
    if row is None:
        return Figure()
    noise = row["noise"] / 2
    return Figure(f"{row['ratio']:.2f} \N{PLUS-MINUS SIGN} {noise:.2f}", row["ratio"] / goal, noise)


def _to_jax(ours: Any, jax: Any) -> Figure:
    """JAX's ratio, which is behind where it is less than ours."""
    if ours is None or jax is None:
        return Figure()
    shown = _ratio(jax)
    return shown._replace(of_goal=ours["ratio"] / jax["ratio"], slack=shown.slack / jax["ratio"])


def _together(jax: Any, ours: Any) -> tuple[str, Figure]:
    if jax is None and ours is None:
        return "", Figure()
    before = "\N{EN DASH}" if jax is None else str(_ratio(jax)._replace(of_goal=None))
    if ours is None:
        return before, Figure("\N{EN DASH}")
    shown = _ratio(ours, jax["ratio"] if jax else 1.0)
    return before, shown._replace(slack=shown.slack / (jax["ratio"] if jax else 1.0))


def _pair(by_hand: float | None, ours: float | None, goal: float) -> tuple[str, Figure]:
    if ours is None:
        return "", Figure()
    before = "\N{EN DASH}" if by_hand is None else _number(by_hand)
    return before, Figure(_number(ours), ours / goal if goal else None)


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _time(row: Any) -> str:
    us = row["median"]
    return f"{us:.0f} µs" if us < 1000 else f"{us / 1000:.1f} ms"
