"""A loop that is open when the process ends is closed while all modules are still there."""

from __future__ import annotations

import atexit
import inspect
import os
import weakref
from collections.abc import Generator
from typing import Any


class AtExit:
    """Closes a loop at the end of the process, if it is still open.

    Left to itself, Python closes it when it has begun to take modules apart: effects then write
    nothing, or the wrong thing, and what they say makes no sense.
    """

    def __init__(self) -> None:
        self._loop: weakref.ref[Generator[Any, Any, Any]] | None = None
        self._process = os.getpid()

    def watch(self, loop: Generator[Any, Any, Any]) -> None:
        """Which loop it is, so far not begun."""
        self._loop = weakref.ref(loop)

    def begin(self) -> None:
        """From now on. What was opened before is whole at that time, for the last comes first."""
        atexit.register(self._close)

    def end(self) -> None:
        """The loop has been closed."""
        atexit.unregister(self._close)

    def _close(self) -> None:
        loop = self._loop and self._loop()
        if loop is None or os.getpid() != self._process:  # a fork, which has a copy
            return
        if inspect.getgeneratorstate(loop) != inspect.GEN_RUNNING:  # else in a thread, to the end
            loop.close()
