"""SIGUSR1: somebody asks for a checkpoint now."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none


class Demand:
    """Notes the signal, and passes it on to whoever listened before.

    Only the main thread can listen; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._listening = False

    def listen(self) -> None:
        """Begin."""
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return
        self._asked, self._listening = False, True
        self._before = signal.signal(_SIGNAL, self._note)

    def stop_listening(self) -> None:
        """Give the signal back."""
        if self._listening and threading.current_thread() is threading.main_thread():
            signal.signal(_SIGNAL, self._before)
            self._listening = False

    def taken(self) -> bool:
        """Whether the signal has come since the last call."""
        asked, self._asked = self._asked, False
        return asked

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        if callable(self._before):
            self._before(signum, frame)
