"""``pipe`` and ``compose``: put functions and stages together, with types."""

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
    """Hand `value` through `functions`, left to right; the first value of a pipeline is a loss.

    >>> pipe(3, lambda x: x + 1, str)
    '4'
    """
    for function in functions:
        if not callable(function):
            raise TypeError(
                f"pipe hands its first value through functions, and {function!r} is none. An "
                "optimizer goes into one: fl.update(optimizer)."
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
    """One function of several, applied left to right: a reusable piece of a pipeline.

    >>> compose(abs, str)(-3)
    '3'
    """
    return toolz.compose_left(*functions)
