"""A thread that writes points to a tracker, so that training does not wait for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from fnloop.effects.points import Point
from fnloop.trackers.base import Tracker
from fnloop.trackers.outbox import Outbox
from fnloop.trackers.shown import Shown
from fnloop.values.merging import numbers_of
from fnloop.values.threads import begin

_log = logging.getLogger("fnloop")


class Reading:
    """A point whose metrics are read from the device once, by the first thread that asks."""

    def __init__(self, point: Point) -> None:
        self.step, self.epoch = point.step, point.epoch
        self._metrics: dict[str, object] | None = point.metrics
        self._numbers: dict[str, float] | None = None
        self._lock = threading.Lock()

    def numbers(self) -> dict[str, float] | None:
        """Its numbers; None if they could not be read, which the first thread is told by an error.

        Raises:
            Exception: They cannot be read.
        """
        with self._lock:
            metrics, self._metrics = self._metrics, None
            if metrics is not None:
                self._numbers = numbers_of([metrics])[0]
            return self._numbers


class Showing(NamedTuple):
    """Values that are shown, by name, at a step."""

    step: int
    epoch: int
    values: Mapping[str, Shown]


class Worker:
    """Writes points, and what is shown, to one tracker, in order.

    `Outbox` says what becomes of those that fail.

    `put` blocks while the queue is full. If the tracker writes nothing meanwhile for `patience`
    seconds (it hangs), it is no longer waited for until it goes on, and new points are dropped.
    `close` waits as patiently, and says every few seconds how much is left.

    Args:
        tracker: An open tracker.
        capacity: Size of the queue.
        patience: Seconds.
        outbox: Default an `Outbox` for the tracker.
    """

    def __init__(
        self,
        tracker: Tracker,
        capacity: int = 64,
        patience: float = 60.0,
        outbox: Outbox | None = None,
    ) -> None:
        self.tracker, self._name = tracker, type(tracker).__name__
        self._outbox = outbox or Outbox(tracker)
        self._patience = patience
        # Queues of C: an exception from a signal handler could leave a `queue.Queue` locked.
        self._queue: queue.SimpleQueue[Reading | Showing | None] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(capacity):
            self._places.put(None)
        self._hangs = False
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="fnloop-track", daemon=True)

    def start(self) -> None:
        """Start the thread; afterwards call `close`."""
        begin(self._thread.start)

    def put(self, point: Reading | Showing) -> None:
        """Queue a point, or what is shown."""
        if not self._put(point):
            self._outbox.drop(point.step)
        self._speak()

    def close(self) -> bool:
        """Wait until all points are written; False if the tracker hangs in a call."""
        try:
            if not self._given_up:
                self._wait()
        except BaseException:  # from a signal handler: wait a little
            self.give_up()
            raise
        self._speak()
        if self._thread.is_alive():
            warnings.warn(
                f"The tracker {self._name} does not come back from a call. It was not closed, and "
                f"lacks some {self._left()} points of this run.",
                stacklevel=4,
            )
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Let the thread end after what is queued, and wait a second for it."""
        self._given_up = True
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def _wait(self) -> None:
        taken, since = self._outbox.taken, time.monotonic()
        if self._put(None) and self._thread.is_alive():
            self._thread.join(min(5.0, self._patience))
        while self._thread.is_alive() and not self._hangs:
            _log.warning(
                "waiting for %s, which has some %d points to write (Ctrl-C ends the wait)",
                self._name,
                self._left(),
            )
            if taken != self._outbox.taken:
                taken, since = self._outbox.taken, time.monotonic()
            self._hangs = time.monotonic() - since > self._patience
            self._thread.join(min(5.0, self._patience))

    def _left(self) -> int:
        return self._queue.qsize() + len(self._outbox)

    def _put(self, item: Reading | Showing | None) -> bool:
        try:
            self._places.get(timeout=0 if self._hangs else self._patience)
            self._queue.put(item)
        except queue.Empty:
            if not self._hangs:
                self._outbox.messages.append(
                    f"The tracker {self._name} has written nothing for {self._patience:g} s. "
                    "Training goes on without waiting for it; until it comes back, points are "
                    "dropped."
                )
            self._hangs = True
            return False
        self._hangs = False
        return True

    def _speak(self) -> None:
        """Warn on the training thread, where the user's filters apply."""
        while self._outbox.messages:
            warnings.warn(self._outbox.messages.popleft(), stacklevel=4)
        while self._outbox.notes:
            _log.warning(self._outbox.notes.popleft())

    def _work(self) -> None:
        while (point := self._next()) is not None:
            if isinstance(point, Showing):
                for name, value in point.values.items():
                    self._outbox.show(point.step, point.epoch, name, value)
            elif isinstance(point, Reading):
                self._add(point)
            self._outbox.send()
        self._outbox.finish()

    def _next(self) -> Reading | Showing | float | None:
        """The next point; None at the end; the seconds waited, if it is time to try again."""
        pause = self._outbox.pause()
        try:
            point = self._queue.get(timeout=pause)
        except queue.Empty:
            return pause
        self._places.put(None)
        return point

    def _add(self, point: Reading) -> None:
        try:
            numbers = point.numbers()
        except Exception as error:
            self._outbox.messages.append(
                f"The metrics of step {point.step} cannot be read, and are not tracked: "
                f"{type(error).__name__}: {error}"
            )
            return
        if numbers is not None:
            self._outbox.add(point.step, point.epoch, numbers)
