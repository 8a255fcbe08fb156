"""Schedules with several phases."""

from __future__ import annotations

import math
from typing import Any, Literal

from fnloop.schedules.base import Schedule, bend, check_count, clip, fraction, where
from fnloop.schedules.ranges import PositiveValue, Value
from fnloop.trees.nodes import tree
from fnloop.values.counts import as_count


@tree
class one_cycle(Schedule):
    """Rise to `peak`, then fall to nearly zero (Smith & Topin, 2018); ``OneCycleLR``.

    The last value is reached at step ``steps - 1``.

    Args:
        peak: The largest value.
        steps: Total number of steps.
        pct_start: Fraction of the steps that rise.
        div_factor: The first value is ``peak / div_factor``.
        final_div_factor: The last value is ``peak / div_factor / final_div_factor``.
        anneal: Shape of the phases, "cos" or "linear".
        three_phase: Fall to the first value in as many steps as the rise, then to the last value.

    Raises:
        TypeError: `steps` is not an int.
        ValueError: A phase would have no step, or `anneal` is unknown.

    >>> schedule = one_cycle(1.0, steps=101, pct_start=0.5)
    >>> round(schedule(0), 3), round(schedule(50), 3), round(schedule(100), 6)
    (0.04, 1.0, 4e-06)
    """

    peak: Value
    steps: int
    pct_start: Value = 0.3
    div_factor: PositiveValue = 25.0
    final_div_factor: PositiveValue = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    three_phase: bool = False

    def __post_init__(self) -> None:
        check_count(self, "steps", least=2)
        if isinstance(self.pct_start, (int, float)):
            most = 0.5 if self.three_phase else 1.0
            if not 1 / self.steps < self.pct_start < most:
                raise ValueError(
                    f"one_cycle: pct_start must lie between 1 / steps = {1 / self.steps:g} and "
                    f"{most:g}, so that each phase has a step; got {self.pct_start}."
                )

    def compute(self, step: Any) -> Any:
        low = self.peak / self.div_factor
        lowest = low / self.final_div_factor
        up, last = self.pct_start * self.steps - 1, self.steps - 1
        rise = self._between(low, self.peak, fraction(step, 0, up))
        if not self.three_phase:
            return where(
                step <= up, rise, self._between(self.peak, lowest, fraction(step, up, last))
            )
        down = 2 * self.pct_start * self.steps - 2
        fall = self._between(self.peak, low, fraction(step, up, down))
        tail = self._between(low, lowest, fraction(step, down, last))
        return where(step <= up, rise, where(step <= down, fall, tail))

    def _between(self, start: Any, end: Any, t: Any) -> Any:
        return end + (start - end) * (bend(t) if self.anneal == "cos" else 1 - t)


@tree
class warmup_stable_decay(Schedule):
    """Linear warm-up, a constant phase, and linear decay (Hu et al., 2024, MiniCPM, section 4).

    Args:
        peak: Value between warm-up and decay.
        steps: Total number of steps.
        warmup: Number of steps in which the value rises from zero to `peak`.
        decay: Number of last steps, in which the value falls to `end`.
        end: Value from step `steps` on.

    Raises:
        TypeError: A step count is not an int.
        ValueError: A step count is negative, or warm-up and decay are longer than `steps`.

    >>> schedule = warmup_stable_decay(1.0, steps=100, warmup=10, decay=20)
    >>> [schedule(step) for step in (0, 5, 10, 80, 90, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    peak: Value
    steps: int
    warmup: int
    decay: int
    end: Value = 0.0

    def __post_init__(self) -> None:
        check_count(self, "steps", least=1)
        check_count(self, "warmup", most="steps")
        check_count(self, "decay", most="steps")
        if self.warmup + self.decay > self.steps:
            raise ValueError(
                f"warmup_stable_decay: warmup and decay are {self.warmup} + {self.decay} steps, "
                f"but the total, steps, is {self.steps}."
            )

    def compute(self, step: Any) -> Any:
        fall = fraction(step, self.steps - self.decay, self.steps)
        rise = fraction(step, 0, self.warmup) if self.warmup else 1.0
        return self.peak * rise + (self.end - self.peak) * fall


@tree
class join(Schedule):
    """Run schedules one after another, each from its own step 0; ``SequentialLR``.

    Args:
        schedules: At least one.
        boundaries: Steps at which the second, the third, ... begins.

    Raises:
        TypeError: An item of `schedules` is not a schedule (for a number use
            `fl.schedules.constant`).
        ValueError: The number of boundaries is not one less than that of schedules, or the
            boundaries are not positive and increasing.

    >>> from fnloop.schedules import constant, linear
    >>> schedule = join((linear(0.0, 1.0, steps=10), constant(1.0), constant(0.1)), (10, 50))
    >>> [schedule(step) for step in (5, 49, 50)]
    [0.5, 1.0, 0.1]
    """

    schedules: tuple[Any, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", tuple(self.schedules))
        boundaries = [as_count(b, "join(boundaries=...)", None) for b in self.boundaries]
        object.__setattr__(self, "boundaries", tuple(boundaries))
        for schedule in self.schedules:
            if not callable(schedule):
                raise TypeError(
                    f"join takes schedules; got {schedule!r}. For a number use "
                    f"constant({schedule!r})."
                )
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"join needs one boundary between each two schedules: {len(self.schedules) - 1} "
                f"for {len(self.schedules)} schedules; got {len(self.boundaries)}."
            )
        if any(b <= a for a, b in zip((0, *self.boundaries), self.boundaries, strict=False)):
            raise ValueError(
                f"join: boundaries must be positive and increase; got {self.boundaries}."
            )

    def compute(self, step: Any) -> Any:
        starts, ends = (0, *self.boundaries), (*self.boundaries, math.inf)
        # Clip each to its own steps: outside of them, an exponential may overflow.
        parts = [
            schedule(clip(step - start, 0, end - start))
            for schedule, start, end in zip(self.schedules, starts, ends, strict=True)
        ]
        value = parts[-1]
        for boundary, part in zip(reversed(self.boundaries), reversed(parts[:-1]), strict=True):
            value = where(step < boundary, part, value)
        return value
