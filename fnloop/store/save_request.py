"""A signal handler for SIGUSR1, which asks for a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

from fnloop.effects.handlers import restore

_log = logging.getLogger("fnloop")
_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none


class SaveRequest:
    """Notes the signal, and calls the previous handler.

    The handler can be installed in the main thread only; elsewhere nothing is done.

    Attributes:
        asked: Whether the signal has come since it was `taken` last.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._listening = False
        self._process = 0

    def listen(self) -> None:
        """Install the signal handler."""
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(_SIGNAL)
        if before is None:  # installed from C: Python could not restore it
            return
        self.asked, self._before, self._process = False, before, os.getpid()
        self._listening = True
        signal.signal(_SIGNAL, self._note)

    def stop_listening(self) -> None:
        """Restore the previous handler."""
        if self._listening and threading.current_thread() is threading.main_thread():
            restore(_SIGNAL, self._before)
            self._listening = False

    def taken(self) -> bool:
        """Whether the signal has come since the last call."""
        asked, self.asked = self.asked, False
        return asked

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker, which inherited the handler
            return
        self.asked = True
        _log.warning("SIGUSR1: saving after this step.")
        if callable(self._before):
            self._before(signum, frame)
