"""SIGUSR1: somebody asks for a checkpoint now."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger("fnloop")
_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none


class SaveRequest:
    """Notes the signal, and passes it on to whoever listened before.

    Only the main thread can listen; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._listening = False
        self._process = 0

    def listen(self) -> None:
        """Begin."""
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return
        self._asked, self._listening, self._process = False, True, os.getpid()
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
        if os.getpid() != self._process:  # a worker of the data, which has inherited this
            return
        self._asked = True
        _log.warning("SIGUSR1: saving after this step.")
        if callable(self._before):
            self._before(signum, frame)
