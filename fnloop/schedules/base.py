"""The base class of schedules, and arithmetic on both numbers and tensors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.trees.nodes import is_tree, not_decorated
from fnloop.values.counts import as_count


class Schedule:
    """A pure function of the number of committed optimizer steps.

    Decorate a subclass with `fl.tree` and define `compute`. Its values (``peak``, ``end``) are
    children, so they can be swept and differentiated; step counts are static.
    """

    explains_keywords: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise not_decorated(type(self), "schedule")

    def compute(self, step: Any) -> Any:
        """The value at `step`, an int or float64[]. Must not branch on a tensor's value."""
        raise NotImplementedError

    def __call__(self, step: int | Tensor) -> Any:
        """The value at `step`.

        Args:
            step: An int, or int64[].

        Returns:
            A float for an int; float64[] for a tensor. It does not widen the tensors that it is
            multiplied with.
        """
        if not isinstance(step, Tensor):
            return self.compute(step)
        return self.compute(step.double()).double()


def is_schedule(value: Any) -> bool:
    """Whether `value` is a hyperparameter that depends on the step."""
    return callable(value) and is_tree(value)


def at(value: Any, step: int | Tensor) -> Any:
    """A hyperparameter's value at `step`."""
    if type(value) is float:  # fast path: this runs several times per step
        return value
    return value(step) if is_schedule(value) else value


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` if `condition` else `b`."""
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


def clip(x: Any, low: float, high: float = math.inf) -> Any:
    """`x` clamped to ``[low, high]``."""
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def fraction(step: Any, start: Any, end: Any) -> Any:
    """The progress of `step` from `start` to `end`: 0 up to `start`, 1 from `end` on."""
    if not isinstance(start, Tensor) and not isinstance(end, Tensor) and end == start:
        end = start + 0.5  # a jump: no integer step lies between
    return clip((step - start) / (end - start), 0.0, 1.0)


def bend(t: Any) -> Any:
    """Half a cosine period: from 1 at ``t = 0`` to 0 at ``t = 1``."""
    cos = torch.cos(math.pi * t) if isinstance(t, Tensor) else math.cos(math.pi * t)
    return 0.5 * (1 + cos)


def check_count(schedule: Any, field: str, least: int = 0, most: str | None = None) -> None:
    """Make a field an int, and check that it is from `least` to the value of the field `most`.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is out of range.
    """
    name, value = type(schedule).__name__, getattr(schedule, field)
    value = as_count(value, f"{name}({field}=...)", least)
    object.__setattr__(schedule, field, value)
    if most is not None and value > getattr(schedule, most):
        raise ValueError(
            f"{name}: {field} is {value}, but {most} is {getattr(schedule, most)}. {most} counts "
            f"all steps of the schedule, including {field}."
        )
