"""Operators that named tensors and gradients do not have: each error names the method to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def _refused(symbol: str, methods: str) -> Callable[..., NoReturn]:
    def operator(self: Any, *others: Any) -> NoReturn:
        given = f", here with {type(others[0]).__name__}" if others else ""
        raise TypeError(
            f"fl.Tensors has no operator {symbol}{given}. Use its methods, for example of "
            f"grads.mean: {methods}; any other function goes into mean.map_named(function, ...), "
            "which calls it with each tensor."
        )

    return operator


def _of_the_mean(symbol: str) -> Callable[..., NoReturn]:
    def operator(self: Any, *others: Any) -> NoReturn:
        raise TypeError(
            f"Grads has no operator {symbol}: it is a mean with a weight and metrics. Change its "
            "mean: grads.replace(mean=grads.mean.scale(0.5)). Gradients of two parts of the data "
            "are merged by grads.merge(other)."
        )

    return operator


class NoOperators:
    """Raises a `TypeError` for arithmetic operators, which are methods of `Tensors`."""

    __slots__ = ()
    __array_ufunc__ = None  # so that NumPy numbers ask `Tensors` too

    __add__ = __radd__ = _refused("+", "mean.add(other)")
    __sub__ = _refused("-", "mean.sub(other)")
    __rsub__ = _refused("-", "mean.scale(-1).add(other)")
    __mul__ = __rmul__ = _refused(
        "*", "mean.scale(0.5) for a number or a 0-d tensor, mean.mul(other) for other fl.Tensors"
    )
    __truediv__ = _refused("/", "mean.div(other)")
    __rtruediv__ = _refused("/", "mean.map_named(lambda g: x / g)")
    __pow__ = __rpow__ = _refused("**", "mean.mul(mean) for squares, mean.sqrt()")
    __neg__ = _refused("-", "mean.scale(-1)")
    __abs__ = _refused("abs", "mean.abs()")
    __matmul__ = __rmatmul__ = _refused("@", "mean.map_named(function), tensor by tensor")


class NoOperatorsOfGrads:
    """Raises a `TypeError` for arithmetic operators on `Grads`."""

    __array_ufunc__ = None

    __add__ = __radd__ = _of_the_mean("+")
    __sub__ = __rsub__ = __neg__ = _of_the_mean("-")
    __mul__ = __rmul__ = _of_the_mean("*")
    __truediv__ = _of_the_mean("/")
