"""What a long call is doing now, for whoever shows it: compiling, validating."""

from __future__ import annotations

import threading
import time
from typing import Protocol, Self


class Watcher(Protocol):
    """Whoever shows activities, such as a progress bar."""

    def shows(self, activity: Activity | None) -> None:
        """An activity has begun or advanced; None: it has ended."""

    def says(self, line: str) -> None:
        """A line to keep."""


class _Here(threading.local):
    watchers: tuple[Watcher, ...] = ()


_here = _Here()


def watch(watcher: Watcher) -> None:
    """Tell `watcher` about the activities of this thread, until `unwatch`."""
    _here.watchers = (*_here.watchers, watcher)


def unwatch(watcher: Watcher) -> None:
    """Tell `watcher` no more."""
    _here.watchers = tuple([w for w in _here.watchers if w is not watcher])


def watchers() -> tuple[Watcher, ...]:
    """Who is told about the activities of this thread."""
    return _here.watchers


class Activity:
    """A block of code that takes long; those who watch this thread are told.

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

    def __enter__(self) -> Self:
        for watcher in _here.watchers:
            watcher.shows(self)
        return self

    def __exit__(self, *error: object) -> None:
        for watcher in _here.watchers:
            watcher.shows(None)

    def advance(self) -> None:
        """One more part is done."""
        self.done += 1
        for watcher in _here.watchers:
            watcher.shows(self)

    def text(self) -> str:
        """What is done, how much of it, and for how long if that is over a second."""
        parts = f" {self.done}" + (f"/{self.total}" if self.total else "") if self.done else ""
        seconds = time.perf_counter() - self.began
        return f"{self.what}{parts}" + (f", {seconds:.0f} s" if seconds >= 1 else "")
