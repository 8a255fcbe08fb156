"""Schedules with one curve, after an optional linear warm-up."""

from __future__ import annotations

from typing import Any

from fnloop.schedules.base import Schedule, bend, check_count, clip, fraction, where
from fnloop.schedules.ranges import PositiveValue, Value
from fnloop.trees.nodes import tree


@tree
class constant(Schedule):
    """One value at every step.

    Args:
        value: The value.

    >>> constant(0.1)(1000)
    0.1
    """

    value: Value

    def compute(self, step: Any) -> Any:
        return self.value + 0.0 * step


@tree
class linear(Schedule):
    """A straight line from `start` to `end`; ``torch.optim.lr_scheduler.LinearLR``.

    Args:
        start: Value at the beginning of the line.
        end: Value from step `steps` on.
        steps: Total number of steps, including the warm-up.
        warmup: Number of steps in which the value rises linearly from zero to `start`.

    Raises:
        TypeError: A step count is not an int.
        ValueError: A step count is negative, or `warmup` is more than `steps`.

    >>> schedule = linear(1.0, 0.0, steps=10, warmup=2)
    >>> [schedule(step) for step in (0, 1, 2, 6, 10, 11)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    start: Value
    end: Value
    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        check_count(self, "steps", least=1)
        check_count(self, "warmup", most="steps")

    def compute(self, step: Any) -> Any:
        line = self.start + (self.end - self.start) * fraction(step, self.warmup, self.steps)
        return _warmed(step, self.warmup, self.start, line)


@tree
class cosine(Schedule):
    """Half a cosine from `peak` to `end`; ``CosineAnnealingLR`` (Loshchilov & Hutter, 2017, eq. 5).

    Args:
        peak: Value at the end of the warm-up.
        steps: Total number of steps, including the warm-up.
        warmup: Number of steps in which the value rises linearly from zero to `peak`.
        end: Value from step `steps` on.

    Raises:
        TypeError: A step count is not an int.
        ValueError: A step count is negative, or `warmup` is more than `steps`.

    >>> schedule = cosine(1.0, steps=12, warmup=4)
    >>> [round(schedule(step), 4) for step in (0, 2, 4, 6, 8, 12, 99)]
    [0.0, 0.5, 1.0, 0.8536, 0.5, 0.0, 0.0]
    """

    peak: Value
    steps: int
    warmup: int = 0
    end: Value = 0.0

    def __post_init__(self) -> None:
        check_count(self, "steps", least=1)
        check_count(self, "warmup", most="steps")

    def compute(self, step: Any) -> Any:
        curve = bend(fraction(step, self.warmup, self.steps))
        return _warmed(step, self.warmup, self.peak, self.end + (self.peak - self.end) * curve)


@tree
class polynomial(Schedule):
    """``end + (start - end) * (1 - step / steps) ** power``; ``PolynomialLR``.

    Args:
        start: Value at the beginning of the curve.
        end: Value from step `steps` on.
        steps: Total number of steps, including the warm-up.
        power: Exponent; 1 is a straight line.
        warmup: Number of steps in which the value rises linearly from zero to `start`.

    Raises:
        TypeError: A step count is not an int.
        ValueError: A step count is negative, or `warmup` is more than `steps`.

    >>> polynomial(1.0, 0.0, steps=10, power=2.0)(5)
    0.25
    """

    start: Value
    end: Value
    steps: int
    power: PositiveValue = 1.0
    warmup: int = 0

    def __post_init__(self) -> None:
        check_count(self, "steps", least=1)
        check_count(self, "warmup", most="steps")

    def compute(self, step: Any) -> Any:
        left = (1 - fraction(step, self.warmup, self.steps)) ** self.power
        curve = self.end + (self.start - self.end) * left
        return _warmed(step, self.warmup, self.start, curve)


@tree
class exponential(Schedule):
    """``start * rate ** (step / steps)``; ``ExponentialLR``.

    Args:
        start: Value at step zero.
        rate: Factor over `steps` steps.
        steps: Number of steps over which the value is multiplied by `rate`.

    Raises:
        TypeError: `steps` is not an int.
        ValueError: `steps` is less than 1.

    >>> exponential(1.0, 0.5, steps=10)(20)
    0.25
    """

    start: Value
    rate: PositiveValue
    steps: int = 1

    def __post_init__(self) -> None:
        check_count(self, "steps", least=1)

    def compute(self, step: Any) -> Any:
        return self.start * self.rate ** (step / self.steps)


@tree
class step_decay(Schedule):
    """``start * rate ** (step // steps)``, a staircase; ``StepLR``.

    Args:
        start: Value at step zero.
        rate: Factor after every `steps` steps.
        steps: Number of steps with a constant value.

    Raises:
        TypeError: `steps` is not an int.
        ValueError: `steps` is less than 1.

    >>> schedule = step_decay(1.0, 0.5, steps=10)
    >>> schedule(9), schedule(10), schedule(20)
    (1.0, 0.5, 0.25)
    """

    start: Value
    rate: PositiveValue
    steps: int

    def __post_init__(self) -> None:
        check_count(self, "steps", least=1)

    def compute(self, step: Any) -> Any:
        return self.start * self.rate ** (step // self.steps)


@tree
class inverse_sqrt(Schedule):
    """Linear warm-up, then ``peak * sqrt(warmup / step)`` (Vaswani et al., 2017, eq. 3).

    Args:
        peak: Value at step `warmup`.
        warmup: Number of steps in which the value rises from zero to `peak`.

    Raises:
        TypeError: `warmup` is not an int.
        ValueError: `warmup` is less than 1.

    >>> schedule = inverse_sqrt(1.0, warmup=100)
    >>> schedule(50), schedule(100), schedule(400)
    (0.5, 1.0, 0.5)
    """

    peak: Value
    warmup: int

    def __post_init__(self) -> None:
        check_count(self, "warmup", least=1)

    def compute(self, step: Any) -> Any:
        curve = self.peak * (self.warmup / clip(step, self.warmup)) ** 0.5
        return _warmed(step, self.warmup, self.peak, curve)


def _warmed(step: Any, warmup: int, peak: Any, then: Any) -> Any:
    """A linear warm-up from zero to `peak` in `warmup` steps, followed by `then`."""
    return where(step < warmup, peak * (step / warmup), then) if warmup else then
