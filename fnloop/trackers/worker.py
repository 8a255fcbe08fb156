"""A thread that writes points to trackers, so that training does not wait for them."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Sequence

from fnloop.effects.points import Point
from fnloop.trackers.base import Tracker
from fnloop.values.merging import numbers_of


class Worker:
    """Writes points to trackers, in order.

    A tracker that fails is dropped, with a warning. All trackers are dropped if they write nothing
    for `patience` seconds while the queue is full, so that a lost server does not block training.

    Args:
        trackers: Open trackers.
        capacity: Size of the queue; when it is full, `put` blocks.
        patience: Seconds.
    """

    def __init__(
        self, trackers: Sequence[Tracker], capacity: int = 64, patience: float = 60.0
    ) -> None:
        self._trackers = list(trackers)
        self._patience = patience
        # Queues of C: an exception from a signal handler could leave a `queue.Queue` locked.
        self._queue: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(capacity):
            self._places.put(None)
        self._messages: list[str] = []
        self._stuck = False
        self._thread = threading.Thread(target=self._work, name="fnloop-track", daemon=True)

    def start(self) -> None:
        """Start the thread; afterwards call `close`."""
        self._thread.start()

    def put(self, point: Point) -> None:
        """Queue a point."""
        self._put(point)
        self._speak()

    def close(self) -> None:
        """Wait until all points are written."""
        try:
            self._put(None)
            if not self._stuck:
                self._thread.join()
        except BaseException:  # from a signal handler: wait a little
            self._queue.put(None)
            if self._thread.is_alive():
                self._thread.join(timeout=1)
            raise
        self._speak()

    def _put(self, item: Point | None) -> None:
        if self._stuck:
            return
        try:
            self._places.get(timeout=self._patience)
            self._queue.put(item)
        except queue.Empty:
            self._stuck = True
            names = ", ".join(type(tracker).__name__ for tracker in self._trackers)
            self._messages.append(
                f"The trackers ({names}) have written nothing for {self._patience:g} s. Training "
                "goes on; further points are dropped."
            )

    def _speak(self) -> None:
        """Warn on the training thread, where the user's filters apply."""
        while self._messages:
            warnings.warn(self._messages.pop(0), stacklevel=4)

    def _work(self) -> None:
        while (point := self._queue.get()) is not None:
            self._places.put(None)
            try:
                numbers = numbers_of([point.metrics])[0]
            except Exception as error:
                self._messages.append(
                    f"The metrics of step {point.step} cannot be read, and are not tracked: "
                    f"{type(error).__name__}: {error}"
                )
                continue
            for tracker in list(self._trackers):
                try:
                    tracker.log(numbers, point.step, point.epoch)
                except Exception as error:
                    self._trackers.remove(tracker)
                    self._messages.append(
                        f"The tracker {type(tracker).__name__} failed at step {point.step}: "
                        f"{type(error).__name__}: {error}. Training goes on; further points to "
                        "this tracker are dropped."
                    )
