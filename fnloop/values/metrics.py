"""Metrics: monoids that merge over micro-batches, steps, ranks and validation batches."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fnloop._torch.tracing import opaque
from fnloop.names.keywords import explained
from fnloop.trees.equal import tree_equal
from fnloop.trees.nodes import is_tree, not_decorated, tree, tree_map
from fnloop.trees.show import short, short_fields

Number: TypeAlias = float | Tensor


class Metric:
    """Base class of metrics: an associative `merge` and a `value` to report.

    For a metric of your own, subclass it and decorate with `fl.tree`; its fields are tensors.
    Formatting and comparison with numbers use its value, and ``repr`` shows it; two metrics are
    equal if all their fields are, bit by bit.

    Attributes:
        reduction: How each field is reduced across ranks: ``"sum"``, ``"min"``, ``"max"``,
            ``"same"`` (equal on every rank), or ``"merge"`` (gathered and merged in rank order; the
            fields of a rank may be more or longer than those of another).
        stacks: Whether `merge` and `value` treat each element of the fields alone. A population
            then keeps one metric, whose fields have a leading dimension, else one for each member.
            It is not inherited.

    >>> @tree
    ... class Count(Metric):
    ...     n: Tensor
    ...     def merge(self, other):
    ...         return Count(self.n + other.n)
    ...     def value(self):
    ...         return self.n
    >>> float(Count(torch.tensor(2)).merge(Count(torch.tensor(3))))
    5.0
    >>> f"{Mean(torch.tensor(3.0), 2):.2f}", Mean(3.0, 2) < 2, Mean(3.0, 2) == 1.5
    ('1.50', True, True)
    >>> {"loss": Mean(torch.tensor(3.0), 2), "lr": Last(0.1)}
    {'loss': Mean(1.5), 'lr': Last(0.1)}
    """

    reduction: ClassVar[str] = "sum"
    stacks: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise not_decorated(type(self), "metric")

    def merge(self, other: Any) -> Self:
        """Combine with the metric of a later part, `other`."""
        raise NotImplementedError(f"{type(self).__name__} must define merge(self, other).")

    def value(self) -> Any:
        """The reported value: a tensor, a number, or a dict of them."""
        raise NotImplementedError(f"{type(self).__name__} must define value(self).")

    def empty(self) -> Self:
        """The identity of `merge`, with the same shapes: the metric of no data."""
        return tree_map(_zeros, self)

    def __float__(self) -> float:
        value = self.value()
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"The value of this {type(self).__name__} is {short(value)}, which is not one "
                "number. Take one of them from metric.value(), or use fl.metrics.numbers(metrics)."
            ) from None

    def __int__(self) -> int:
        return int(float(self)) if not isinstance(self.value(), int) else self.value()

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)

    def __repr__(self) -> str:
        if not is_tree(self):
            return object.__repr__(self)
        with contextlib.suppress(Exception):  # there is no value to look at, as while recording
            if not opaque():
                return f"{type(self).__name__}({_text(self.value())})"
        return short_fields(self)

    def __eq__(self, other: object) -> bool:  # `fl.tree` adds the hash
        if isinstance(other, (int, float, np.number)):
            return float(self) == float(other)
        return tree_equal(self, other)

    def __lt__(self, other: Any) -> bool:
        return float(self) < float(other)

    def __le__(self, other: Any) -> bool:
        return float(self) <= float(other)

    def __gt__(self, other: Any) -> bool:
        return float(self) > float(other)

    def __ge__(self, other: Any) -> bool:
        return float(self) >= float(other)


Metrics: TypeAlias = Mapping[str, Any]
"""What a stage reports: a dict of `Metric` objects by name."""


def check_metrics(metrics: Mapping[str, Any], who: str) -> None:
    """Check that all are metrics, which say how they merge.

    Args:
        metrics: What a stage reports.
        who: The stage, for the message.

    Raises:
        TypeError: One is a bare number or tensor, or its class is no tree.
    """
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise TypeError(
                f"{who} reports {name!r} as {short(metric)}. Metrics are merged over steps, so it "
                "must say how: fl.Last(value) keeps the latest, fl.Mean(value * n, n) is the mean "
                "over n examples; or fl.Sum, fl.Max, fl.Min."
            )
        if "__tree_children__" not in vars(type(metric)):
            raise not_decorated(type(metric), "metric")


def exact(value: Any) -> Any:
    """Widen a tensor to the dtype of metrics: int64 for integers and bools, else float64.

    Long sums then neither lose small terms nor overflow. Python numbers are returned unchanged,
    NumPy's become those, and its arrays tensors.

    >>> exact(torch.tensor(3, dtype=torch.uint8)).dtype, exact(torch.tensor(0.5)).dtype
    (torch.int64, torch.float64)
    """
    if not isinstance(value, Tensor):
        if isinstance(value, (np.generic, np.ndarray)):
            return exact(torch.as_tensor(value, device="cpu")) if value.ndim else value.item()
        return value
    if value.dtype in _EXACT:
        return value
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64 if value.is_floating_point() else torch.int64)


_EXACT = frozenset((torch.float64, torch.int64, torch.complex128))


def as_tensor(value: Any, device: torch.device) -> Any:
    """Convert a number to a tensor of an `exact` dtype. Only Python numbers move to `device`."""
    dtype = _DTYPES.get(type(value))  # first, as this runs several times per step
    if dtype is not None:
        return torch.scalar_tensor(value, dtype=dtype, device=device)
    if isinstance(value, Tensor):
        return exact(value)
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        dtype = torch.int64 if isinstance(value, (int, torch.SymInt)) else torch.float64
        number: Any = value
        return torch.scalar_tensor(number, dtype=dtype, device=device)
    if isinstance(value, (np.generic, np.ndarray)):
        number = exact(value)
        return number.to(device) if value.ndim else as_tensor(number, device)
    return value


_DTYPES = {float: torch.float64, int: torch.int64, bool: torch.int64}


def _sum(a: Number, b: Number) -> Number:
    a, b = exact(a), exact(b)
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape != b.shape:
        raise ValueError(
            f"Metrics of different shapes cannot be merged: {short(a)} and {short(b)}. A metric "
            "keeps its shape from batch to batch: sum over the examples, or report one number."
        )
    return a + b


@tree
class Mean(Metric):
    """A weighted mean: `total` is a weighted sum, `weight` the sum of the weights.

    Args:
        total: Sum of weight times value; any shape.
        weight: Number of examples, tokens, ...; a number or a 0-d tensor.

    >>> float(Mean(torch.tensor(6.0), 2).merge(Mean(torch.tensor(1.0), 5)))
    1.0
    """

    stacks: ClassVar[bool] = True
    total: Number
    weight: Number

    def merge(self, other: Self) -> Self:
        return type(self)(_sum(self.total, other.total), _sum(self.weight, other.weight))

    def value(self) -> Number:
        total, weight = _divisible(self.total), _divisible(self.weight)
        if isinstance(weight, Tensor) or isinstance(total, Tensor):
            return total / weight
        return total / weight if weight else float("nan")


@tree
class Sum(Metric):
    """A sum.

    >>> float(Sum(2.0).merge(Sum(3.0)))
    5.0
    """

    stacks: ClassVar[bool] = True
    total: Number

    def merge(self, other: Self) -> Self:
        return type(self)(_sum(self.total, other.total))

    def value(self) -> Number:
        return self.total


@tree
class Min(Metric):
    """The smallest value; nan if any value is nan.

    >>> float(Min(2.0).merge(Min(3.0)))
    2.0
    """

    reduction: ClassVar[str] = "min"
    stacks: ClassVar[bool] = True
    smallest: Number

    def merge(self, other: Self) -> Self:
        return type(self)(_extreme(torch.minimum, self.smallest, other.smallest))

    def empty(self) -> Self:
        return type(self)(_full(self.smallest, float("inf")))

    def value(self) -> Number:
        return self.smallest


@tree
class Max(Metric):
    """The largest value; nan if any value is nan.

    >>> float(Max(2.0).merge(Max(3.0)))
    3.0
    """

    reduction: ClassVar[str] = "max"
    stacks: ClassVar[bool] = True
    largest: Number

    def merge(self, other: Self) -> Self:
        return type(self)(_extreme(torch.maximum, self.largest, other.largest))

    def empty(self) -> Self:
        return type(self)(_full(self.largest, -float("inf")))

    def value(self) -> Number:
        return self.largest


@tree
class Last(Metric):
    """The latest value, such as a learning rate.

    >>> float(Last(0.1).merge(Last(0.2)))
    0.2
    """

    reduction: ClassVar[str] = "same"
    stacks: ClassVar[bool] = True
    latest: Number

    def merge(self, other: Self) -> Self:
        return other

    def empty(self) -> Self:
        return self

    def value(self) -> Number:
        return self.latest


@tree
class Stop(Metric):
    """A request to stop the run, made by `stop`."""

    reduction: ClassVar[str] = "max"
    stacks: ClassVar[bool] = True
    when: Any
    reason: str = ""
    status: str = "stopped"

    def merge(self, other: Self) -> Self:
        return self if bool(self) else other

    def empty(self) -> Self:
        return type(self)(False, self.reason, self.status)

    def value(self) -> bool | Tensor:
        return self.when

    def __bool__(self) -> bool:
        return bool(self.when)


@explained
def stop(when: bool | Tensor, reason: str, status: str = "stopped") -> Stop:
    """A metric that asks the loop to stop after this step if `when` is true.

    Args:
        when: Whether to stop: a bool or bool[].
        reason: Why; shown in `fl.History` and the progress line.
        status: The status of the run after the stop.

    >>> def enough(state, metrics):
    ...     return state, {**metrics, "enough": stop(float(metrics["loss"]) < 0.1, "loss < 0.1")}
    """
    return Stop(when, reason, status)


def _text(value: Any) -> str:
    """A value for people: numbers have four digits, and what is long or wide only its shape."""
    if isinstance(value, Tensor) and (value.ndim < 2 or value.numel() == 1):
        value = value.tolist() if value.numel() <= _FEW else value
    if isinstance(value, Mapping):
        parts = [f"{name!r}: {_text(part)}" for name, part in [*value.items()][:_FEW]]
        return "{" + ", ".join(parts) + (", ...}" if len(value) > _FEW else "}")
    if isinstance(value, (list, tuple)) and len(value) <= _FEW:
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:.4g}" if isinstance(value, (float, complex)) else short(value)


_FEW = 8


def _divisible(value: Any) -> Any:
    """A tensor in float64: int64 divided by int64 would be in the default dtype."""
    value = exact(value)
    return value.double() if isinstance(value, Tensor) and not value.is_complex() else value


def _zeros(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return np.zeros_like(leaf)
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else type(leaf)(0)


def _full(like: Number, value: float) -> Number:
    if not isinstance(like, Tensor):
        return value
    if like.is_floating_point():
        return torch.full_like(like, value)
    if like.dtype is torch.bool:
        return torch.full_like(like, value > 0)
    range = torch.iinfo(like.dtype)
    return torch.full_like(like, range.max if value > 0 else range.min)


def _extreme(f: Any, a: Number, b: Number) -> Number:
    a, b = exact(a), exact(b)
    device = next((x.device for x in (a, b) if isinstance(x, Tensor)), None)
    if device is not None:  # without a device, a tensor would move to torch's default device
        return f(as_tensor(a, device), as_tensor(b, device))
    if a != a or b != b:
        return float("nan")
    return max(a, b) if f is torch.maximum else min(a, b)
