"""What a long call is doing now, for whoever shows it: compiling, validating."""

from __future__ import annotations

import threading
import time
from typing import Protocol, Self


class Watcher(Protocol):
    """Whoever shows activities, such as a progress bar."""

    def shows(self, activity: Activity | None) -> None:
        """An activity has begun or advanced, or the one in it has ended; None: all have."""

    def says(self, line: str) -> None:
        """A line to keep."""


class _Here(threading.local):
    watchers: tuple[Watcher, ...] = ()
    keepers: tuple[Watcher, ...] = ()
    current: Activity | None = None


_here = _Here()


def watch(watcher: Watcher, keeps: bool = True) -> None:
    """Tell `watcher` about the activities of this thread, until `unwatch`.

    Args:
        watcher: Whom to tell.
        keeps: Whether it keeps lines where somebody sees them.
    """
    _here.watchers = (*_here.watchers, watcher)
    _here.keepers = (*_here.keepers, *((watcher,) if keeps else ()))


def unwatch(watcher: Watcher) -> None:
    """Tell `watcher` no more."""
    _here.watchers = tuple([w for w in _here.watchers if w is not watcher])
    _here.keepers = tuple([w for w in _here.keepers if w is not watcher])


def watchers() -> tuple[Watcher, ...]:
    """Who is told about the activities of this thread, and keeps lines."""
    return _here.keepers


class Activity:
    """A block of code that takes long, perhaps in another; those who watch this thread are told.

    Args:
        what: What is done, such as ``"val"``.
        total: In how many parts; None if unknown.

    >>> with Activity("val", total=3) as activity:
    ...     activity.advance()
    ...     print(activity.text())
    val 1/3
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.began = time.perf_counter()
        self._outer: Activity | None = None

    def __enter__(self) -> Self:
        self._outer, _here.current = _here.current, self
        for watcher in _here.watchers:
            watcher.shows(self)
        return self

    def __exit__(self, *error: object) -> None:
        _here.current = self._outer
        for watcher in _here.watchers:
            watcher.shows(self._outer)

    def advance(self) -> None:
        """One more part is done."""
        self.done += 1
        for watcher in _here.watchers:
            watcher.shows(self)

    def left(self) -> float | None:
        """Seconds until it is done, at the pace so far; None until it has taken a second."""
        seconds = time.perf_counter() - self.began
        if not self.total or not self.done or seconds < 1:
            return None
        return max(0.0, seconds / self.done * (self.total - self.done))

    def text(self) -> str:
        """What is done, how much of it, and for how long if that is over a second."""
        parts = f" {self.done}" + (f"/{self.total}" if self.total else "") if self.done else ""
        seconds = time.perf_counter() - self.began
        return f"{self.what}{parts}" + (f", {seconds:.0f} s" if seconds >= 1 else "")
