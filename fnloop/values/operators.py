"""Operators that named tensors do not have: each raises an error that names the method to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def _refused(symbol: str, methods: str) -> Callable[..., NoReturn]:
    def operator(self: Any, *others: Any) -> NoReturn:
        given = f", here with {type(others[0]).__name__}" if others else ""
        raise TypeError(
            f"fl.Tensors has no operator {symbol}{given}. Use its methods: {methods}; any other "
            "function of the values goes into grads.zip_map(function, ...)."
        )

    return operator


class NoOperators:
    """Raises a `TypeError` for arithmetic operators, which are methods of `Tensors`."""

    __slots__ = ()
    __array_ufunc__ = None  # so that NumPy numbers ask `Tensors` too

    __add__ = __radd__ = _refused("+", "grads.add(other)")
    __sub__ = _refused("-", "grads.sub(other)")
    __rsub__ = _refused("-", "grads.scale(-1).add(other)")
    __mul__ = __rmul__ = _refused(
        "*", "grads.scale(-lr) for a number or a 0-d tensor, grads.mul(other) for other fl.Tensors"
    )
    __truediv__ = _refused("/", "grads.div(other)")
    __rtruediv__ = _refused("/", "grads.zip_map(lambda g: x / g)")
    __pow__ = __rpow__ = _refused("**", "grads.mul(grads) for squares, grads.sqrt()")
    __neg__ = _refused("-", "grads.scale(-1)")
    __matmul__ = __rmatmul__ = _refused("@", "grads.map_named(function), tensor by tensor")
