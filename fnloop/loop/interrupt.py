"""Ctrl-C and SIGTERM: the first finishes the step, the second stops at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Generator, Iterable, Mapping
from types import FrameType
from typing import Any, ClassVar

from fnloop.stages.base import Callback
from fnloop.values.metrics import stop
from fnloop.values.state import State

_log = logging.getLogger("fnloop")
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupt(Callback):
    """A callback that asks for a stop once a signal has come."""

    spelling: ClassVar[str] = "interrupt"

    def __init__(self) -> None:
        self.came: str | None = None  # which signal
        self._process = os.getpid()

    def describe(self) -> str:
        return "interrupt"

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        if self.came is None:
            return state, x
        asked = stop(True, f"interrupted by {self.came}", status="interrupted")
        return state, {**x, "interrupt": asked}

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Take the signals over for a block; only the main thread can, elsewhere nothing changes.

        A signal that the process ignores, as one started with ``nohup`` may, stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.getsignal(signum) for signum in _NAMES}
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, self._note)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of the data, which has inherited this
            return
        if self.came is not None:
            raise KeyboardInterrupt
        self.came = _NAMES[signal.Signals(signum)]
        again = " Press it again to stop at once." if signum == signal.SIGINT else ""
        _log.warning("%s: finishing this step.%s", self.came, again)


def interrupted(stages: Iterable[Any]) -> str:
    """The reason to stop, if a signal has come; else empty."""
    came = next((stage.came for stage in stages if isinstance(stage, Interrupt)), None)
    return f"interrupted by {came}" if came else ""
