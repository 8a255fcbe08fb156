"""``Writes``: what a donating step writes over the state before, all of it or nothing."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Write: TypeAlias = Callable[[], Any]
"""A call of a function of torch, bound by `functools.partial`: no bytecode runs in it."""


class Writes:
    """Calls that write in place.

    Attributes:
        done: Not empty once they have been made; an exception may come right after that.
    """

    __slots__ = ("_calls", "done")

    def __init__(self, calls: Sequence[Write]) -> None:
        self._calls = calls
        self.done: list[bool] = []

    def make(self) -> None:
        """Make the calls.

        No exception of a signal handler or of another thread comes between two of them, nor before
        `done` says so: such exceptions come with the next bytecode, and ``list(map(...))`` is one.
        The tensors are plain, and no mode of torch's is on: these would run bytecode.
        """
        note = functools.partial(self.done.append, True)
        list(map(operator.call, (*self._calls, note)))
