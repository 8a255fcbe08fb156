"""Counts and durations that users give: checked in one place, and made Python numbers."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from fnloop.trees.show import short


def as_count(value: Any, what: str, least: int | None = 0) -> int:
    """Convert a count to a Python int; NumPy's and torch's integers are counts too.

    Args:
        value: What the user gave.
        what: The argument, for messages: ``"every(n, ...)"``.
        least: The smallest count that is accepted; None for any integer.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below `least`.

    >>> as_count(4, "every(n, ...)", 1)
    4
    >>> as_count(1e4, "every(n, ...)", 1)
    Traceback (most recent call last):
    TypeError: every(n, ...) takes a whole number of at least 1, got 10000.0 (float). Write 10_000 \
rather than 1e4, and // rather than /.
    """
    kind = "a whole number" if least is None else f"a whole number of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        hint = " Write 10_000 rather than 1e4, and // rather than /."
        hint = hint if isinstance(value, float) and value.is_integer() else ""
        got = f"{short(value)} ({type(value).__name__})"
        raise TypeError(f"{what} takes {kind}, got {got}.{hint}")
    if least is not None and number < least:
        raise ValueError(f"{what} takes {kind}, got {number}.")
    return number


def as_number(value: Any, what: str, least: float = 0.0, above: bool = False) -> float:
    """Convert a number to a Python float: at least `least`, or above it, and not nan.

    Args:
        value: What the user gave.
        what: The argument, for messages: ``"run(seconds=...)"``.
        least: The lower bound.
        above: Whether the bound itself is refused.

    Raises:
        TypeError: It is not a number.
        ValueError: It is below `least`, or nan.

    >>> as_number(3, "run(seconds=...)")
    3.0
    >>> as_number(float("nan"), "run(seconds=...)")
    Traceback (most recent call last):
    ValueError: run(seconds=...) takes a number of at least 0, got nan.
    """
    kind = f"a number {'above' if above else 'of at least'} {least:g}"
    single = not isinstance(value, (str, bytes, bool)) and (
        not isinstance(value, Tensor) or not value.ndim
    )
    try:
        number = float(value) if single else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise TypeError(f"{what} takes {kind}, got {short(value)} ({type(value).__name__}).")
    if not (number > least or (number == least and not above)):
        raise ValueError(f"{what} takes {kind}, got {number:g}.")
    return number
