"""``pipe`` and ``compose``: combine functions and stages, with types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import toolz

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")
H = TypeVar("H")


@overload
def pipe(value: A, /) -> A: ...
@overload
def pipe(value: A, f: Callable[[A], B], /) -> B: ...
@overload
def pipe(value: A, f: Callable[[A], B], g: Callable[[B], C], /) -> C: ...
@overload
def pipe(value: A, f: Callable[[A], B], g: Callable[[B], C], h: Callable[[C], D], /) -> D: ...
@overload
def pipe(
    value: A, f: Callable[[A], B], g: Callable[[B], C], h: Callable[[C], D], i: Callable[[D], E], /
) -> E: ...
@overload
def pipe(
    value: A,
    f: Callable[[A], B],
    g: Callable[[B], C],
    h: Callable[[C], D],
    i: Callable[[D], E],
    j: Callable[[E], F],
    /,
) -> F: ...
@overload
def pipe(
    value: A,
    f: Callable[[A], B],
    g: Callable[[B], C],
    h: Callable[[C], D],
    i: Callable[[D], E],
    j: Callable[[E], F],
    k: Callable[[F], G],
    /,
) -> G: ...
@overload
def pipe(
    value: A,
    f: Callable[[A], B],
    g: Callable[[B], C],
    h: Callable[[C], D],
    i: Callable[[D], E],
    j: Callable[[E], F],
    k: Callable[[F], G],
    m: Callable[[G], H],
    /,
) -> H: ...
@overload
def pipe(value: Any, /, *functions: Callable[[Any], Any]) -> Any: ...
def pipe(value: Any, /, *functions: Callable[[Any], Any]) -> Any:
    """Apply `functions` to `value`, left to right. The first value of a pipeline is a loss.

    Raises:
        TypeError: One of `functions` is not callable.

    >>> pipe(3, lambda x: x + 1, str)
    '4'
    """
    for function in functions:
        if not callable(function):
            raise TypeError(
                f"pipe applies functions to its first value; {function!r} is not a function. Wrap "
                "an optimizer: fl.update(optimizer)."
            )
    return toolz.pipe(value, *functions)


@overload
def compose(f: Callable[[A], B], /) -> Callable[[A], B]: ...
@overload
def compose(f: Callable[[A], B], g: Callable[[B], C], /) -> Callable[[A], C]: ...
@overload
def compose(
    f: Callable[[A], B], g: Callable[[B], C], h: Callable[[C], D], /
) -> Callable[[A], D]: ...
@overload
def compose(
    f: Callable[[A], B], g: Callable[[B], C], h: Callable[[C], D], i: Callable[[D], E], /
) -> Callable[[A], E]: ...
@overload
def compose(*functions: Callable[[Any], Any]) -> Callable[[Any], Any]: ...
def compose(*functions: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Compose functions, applied left to right, into one: a reusable part of a pipeline.

    >>> compose(abs, str)(-3)
    '3'
    """
    return toolz.compose_left(*functions)
