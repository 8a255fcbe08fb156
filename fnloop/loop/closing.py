"""``Closing``: what a run has opened, and how it is closed, whatever comes in between."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from fnloop.effects.effect import Effect, Run, named
from fnloop.loop.interrupt import Interrupt
from fnloop.values.error_state import attach_state

_OPENS_FIRST = attrgetter("opens_first")


class Closing:
    """The open effects and the data of a run.

    An exception from a signal handler may come at any instruction. One that comes inside an
    effect's `close` ends that `close` only. Between two of them, `interrupt` lets no handler raise;
    for what comes from elsewhere, `close` can be called again, and goes on where it was.
    """

    def __init__(self, interrupt: Interrupt, run: Run) -> None:
        self._interrupt = interrupt
        self._run = run
        self._effects: list[Effect] = []
        self._batches: Iterator[Any] = iter(())
        self._half_open: Effect | None = None
        self._closed: list[Any] = []
        self._failures: list[str] = []
        self._raised: BaseException | None = None

    def open(self, effect: Effect) -> None:
        """Open an effect. It will be closed even if this fails."""
        self._effects.append(effect)
        self._half_open = effect
        effect.open(self._run)
        self._half_open = None

    def read(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Read `batches` from now on, and close those that were read before."""
        before, self._batches = self._batches, batches
        getattr(before, "close", _nothing)()
        return batches

    def close(self, status: str) -> None:
        """Close all effects, in order, and the data; warn of those whose `close` fails.

        Raises:
            BaseException: The first that is no `Exception` (such as KeyboardInterrupt) and came
                from a `close`, after all have been closed.
        """
        self._interrupt.hold = True
        self._run.status = status
        # What shows the others' work is opened first and closed last.
        for name, effect in named(sorted(self._effects, key=_OPENS_FIRST)).items():
            self._call(effect, f"the effect {name}", effect.close, status)
        self._call(self._batches, "the data", getattr(self._batches, "close", _nothing))
        for effect in self._effects:
            self._release(effect)
        while self._failures:
            warnings.warn(self._failures.pop(0), stacklevel=2)
        raised, self._raised = self._raised, None
        if raised is not None:
            attach_state(raised, self._run.state)
            raise raised

    def _call(self, what: Any, name: str, close: Callable[..., None], *arguments: Any) -> None:
        """Call `close`, but not twice."""
        if self._is_closed(what):
            return
        begun = None
        try:
            try:
                self._interrupt.hold = False
                (begun := close)(*arguments)  # one line, and one moment
            finally:
                self._note(what, begun)
        except BaseException as error:
            self._note(what, begun)
            if begun is None:
                raise
            if not isinstance(error, Exception):
                self._raised = self._raised or error
            elif what is not self._half_open:  # else the error of its `open` is the one to see
                self._failures.append(f"Closing {name} failed: {error!r}")

    def _release(self, effect: Effect) -> None:
        try:
            effect.release()
        except Exception as error:
            self._failures.append(f"Releasing what {effect.name} holds failed: {error!r}")

    def _note(self, what: Any, begun: Any) -> None:
        self._interrupt.hold = True
        if begun is not None and not self._is_closed(what):
            self._closed.append(what)

    def _is_closed(self, what: Any) -> bool:
        return any(what is other for other in self._closed)


def _nothing() -> None:
    """The `close` of an iterator that has none."""
