"""Signal handlers for Ctrl-C and SIGTERM: the first finishes the step, the second stops at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, ClassVar

from fnloop.stages.base import Callback
from fnloop.values.metrics import stop
from fnloop.values.state import State

_log = logging.getLogger("fnloop")
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupt(Callback):
    """A callback that asks for a stop after a signal."""

    label: ClassVar[str] = "interrupt"

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

    def listening(self) -> contextlib.AbstractContextManager[Any]:
        """Install the signal handlers for a block, in the main thread; elsewhere do nothing.

        A signal that the process ignores, as under ``nohup``, stays ignored.
        """
        # Not a generator: contextlib sets attributes of exceptions, which a frozen one refuses.
        block = contextlib.ExitStack()
        if threading.current_thread() is threading.main_thread():
            for signum in _NAMES:
                before = signal.getsignal(signum)
                block.callback(signal.signal, signum, before)
                if before is not signal.SIG_IGN:
                    signal.signal(signum, self._note)
        return block

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker, which inherited the handler
            return
        if self.came is not None:
            raise KeyboardInterrupt
        self.came = _NAMES[signal.Signals(signum)]
        again = " Press it again to stop at once." if signum == signal.SIGINT else ""
        _log.warning("%s: finishing this step.%s", self.came, again)


def interrupted(stages: Iterable[Any]) -> str:
    """The reason to stop after a signal; else empty."""
    came = next((stage.came for stage in stages if isinstance(stage, Interrupt)), None)
    return f"interrupted by {came}" if came else ""
