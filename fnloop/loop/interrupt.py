"""Signal handlers for Ctrl-C, SIGTERM, SIGHUP: the first ends the run, the second stops at once."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any, ClassVar

from torch.utils.data import get_worker_info

from fnloop.effects.handlers import restore
from fnloop.stages.callback import Callback
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import stop
from fnloop.values.state import State
from fnloop.values.threads import HOLDERS

_log = logging.getLogger("fnloop")
_KNOWN = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}  # Windows has no SIGHUP
SIGNALS = tuple(_KNOWN.values())
_NAMES = {getattr(signal, name): text for name, text in _KNOWN.items() if hasattr(signal, name)}


class Interrupt(Callback):
    """A callback that asks for a stop after a signal.

    While it listens, it is also between the process and the handlers that others have installed (an
    alarm's): see `hold`.

    Attributes:
        noted: The first signal to this process: "Ctrl-C", "SIGTERM", "SIGHUP"; None if there was
            none.
        agreed: The signal by which all ranks of a mesh end, once they know of it.
        ranks: Those to which it was sent, if not to all.
        alone: Whether the run may end at once; else the ranks agree on it before the next step.
        hold: While True, no handler raises an exception: signals wait until `raise_held`. For the
            few instructions between closing one thing and the next, and while a thread starts.
    """

    label: ClassVar[str] = "interrupt"

    def __init__(self) -> None:
        self.noted: str | None = None
        self.agreed: str | None = None
        self.ranks: list[int] = []
        self.alone = True
        self.hold = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}  # the handlers to restore
        self._others: dict[int, Any] = {}  # ours, around handlers of other signals
        self._held: list[int] = []

    def describe(self) -> str:
        return "interrupt"

    def is_due(self, cursor: Cursor) -> bool:
        return False

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        if self.noted is None or not self.alone:
            return state, x
        return state, {**x, "interrupt": stop(True, self.reason, status="interrupted")}

    @property
    def came(self) -> str | None:
        """The signal that ends the run: of many ranks, one that all know of."""
        return self.noted if self.alone else self.agreed

    @property
    def reason(self) -> str:
        """The reason to stop after a signal; else empty."""
        to = f" to rank {', '.join(map(str, self.ranks))}" if self.ranks else ""
        return f"interrupted by {self.came}{to}" if self.came else ""

    def listen(self) -> None:
        """Install the signal handlers, in the main thread; elsewhere do nothing.

        A signal that the process ignores, as under ``nohup``, stays ignored. A handler that was
        installed from C stays, since Python could not restore it.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        HOLDERS.append(self)
        for signum in signal.valid_signals():
            before = signal.getsignal(signum)
            if signum in _NAMES and before not in (None, signal.SIG_IGN):
                self._before[signum] = before
                signal.signal(signum, self._note)
            elif callable(before):
                self._before[signum] = before
                self._others[signum] = functools.partial(self._pass_on, before)
                signal.signal(signum, self._others[signum])

    def stop_listening(self) -> None:
        """Restore the handlers; those that somebody has replaced in the meantime stay."""
        for signum, before in self._before.items():
            if signum in _NAMES or signal.getsignal(signum) is self._others.get(signum):
                restore(signum, before)
        HOLDERS[:] = [other for other in HOLDERS if other is not self]

    def raise_held(self) -> None:
        """Let the signals that had to wait take their effect."""
        self.hold = False
        while self._held:
            signum = self._held.pop(0)
            if signum in _NAMES:
                raise KeyboardInterrupt
            signal.raise_signal(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._note_in_child(signum)
        elif self.noted is None:
            self.noted = _NAMES[signal.Signals(signum)]
            again = " Press it again to stop at once." if signum == signal.SIGINT else ""
            _log.warning("%s: finishing this step.%s", self.noted, again)
        elif self.hold:
            self._held.append(signum)
        else:
            raise KeyboardInterrupt

    def _note_in_child(self, signum: int) -> None:
        """In a process that was forked during the run, and has inherited the handlers."""
        if get_worker_info() is None:  # a process of the user's, who may want to end it
            signal.signal(signum, self._before[signum])
            signal.raise_signal(signum)
        # Else Ctrl-C has reached the workers of the loader, too; the step still needs them.

    def _pass_on(
        self, handler: Callable[[int, Any], Any], signum: int, frame: FrameType | None
    ) -> None:
        if self.hold and os.getpid() == self._process:
            self._held.append(signum)
        else:
            handler(signum, frame)


def interrupt_in(stages: Iterable[Any]) -> Interrupt:
    """The `Interrupt` among a run's callbacks; if there is none, one that does not listen."""
    found = [stage for stage in stages if isinstance(stage, Interrupt)]
    return found[0] if found else Interrupt()
