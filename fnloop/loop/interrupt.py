"""Ctrl-C: the first finishes the step, the second stops at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Generator, Mapping
from types import FrameType
from typing import Any, ClassVar

from fnloop.stages.base import Callback
from fnloop.values import State, stop

_log = logging.getLogger("fnloop")


class Interrupt(Callback):
    """A callback that asks for a stop once Ctrl-C was pressed."""

    spelling: ClassVar[str] = "interrupt"

    def __init__(self) -> None:
        self.pressed = False

    def describe(self) -> str:
        return "interrupt"

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        if not self.pressed:
            return state, x
        asked = stop(True, "interrupted by Ctrl-C", status="interrupted")
        return state, {**x, "interrupt": asked}

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Take SIGINT over for a block; only the main thread can, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(signum: int, frame: FrameType | None) -> None:
            if self.pressed:
                raise KeyboardInterrupt
            self.pressed = True
            _log.warning("Ctrl-C: finishing this step. Press it again to stop at once.")

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
