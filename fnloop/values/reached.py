"""What a function finds outside of its arguments: in its closure, its defaults, its globals."""

from __future__ import annotations

import dis
import functools
import itertools
import types
import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fnloop.values.host_random import GENERATORS, RandomSource, source_of


def generators_of(function: Any) -> list[RandomSource]:
    """The generators of random numbers that a function, or an object that is called, finds.

    >>> import random
    >>> own = random.Random(0)
    >>> def make(generator):
    ...     return lambda: generator.random()
    >>> [source.name for source in generators_of(make(own))]
    ['generator']
    """
    found: list[RandomSource] = []
    seen: set[int] = set()
    waiting = [
        ("a generator", function),
        ("a generator", vars(type(function)).get("__call__")),
    ]
    while waiting and len(seen) < MOST:
        name, value = waiting.pop()
        if id(value) in seen or isinstance(value, (nn.Module, Tensor, type, types.ModuleType)):
            continue
        seen.add(id(value))
        if isinstance(value, GENERATORS):
            found.append(source_of(name, value))
        elif isinstance(value, types.FunctionType):
            waiting += reached(value)
        else:
            waiting += [(name, each) for each in inside(value)]
    return found


MOST = 10_000
"""Number of objects after which a search ends."""

_LONG = 1000
"""Number of elements of a container that are searched."""


def reached(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function finds outside of its arguments, by name."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for value in function.__defaults__ or ():
        yield "a default", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield name, value
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = function.__globals__.get(instruction.argval)
            if isinstance(value, (nn.Module, Tensor, *GENERATORS)):
                yield instruction.argval, value


def inside(value: Any) -> Iterator[Any]:
    """What can be reached from a value in one step: of a function, a container, an object."""
    if isinstance(value, types.FunctionType):
        yield from (found for _, found in reached(value))
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, dict):
        yield from itertools.islice(value.values(), _LONG)  # not through a whole dataset
    elif isinstance(value, (list, tuple, set)):
        yield from itertools.islice(value, _LONG)
    else:
        yield from getattr(value, "__dict__", {}).values()
