"""What is on its way to a tracker; what it does not take is kept and tried again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from fnloop.trackers.base import Tracker
from fnloop.trackers.shown import Shown


class Item(NamedTuple):
    """A point, or one value that is shown.

    Attributes:
        step: As for `fl.trackers.Tracker.log`.
        epoch: The same.
        numbers: The numbers of a point.
        shown: Name and value, in place of numbers.
    """

    step: int
    epoch: int
    numbers: Mapping[str, float]
    shown: tuple[str, Shown] | None = None


class Outbox:
    """Hands points and what is shown to a tracker, in order.

    A point that the tracker does not take waits, and those after it too. The tracker is tried again
    after `pause` seconds, then after twice that, up to a minute. Where the cause is no ``OSError``
    it may be the point itself: it is dropped after `attempts`, so that the others get through.

    Args:
        tracker: An open tracker.
        most: Points that wait; of more, the oldest are dropped.
        most_shown: Pictures and the like that wait, which are larger than points.
        pause: Seconds to the second attempt.
        attempts: As above.

    Attributes:
        taken: Number of points that the tracker has taken.
        messages: What the user is to be warned of, oldest first.
        notes: What the user is to be told, oldest first.
    """

    def __init__(
        self,
        tracker: Tracker,
        most: int = 10_000,
        pause: float = 0.2,
        attempts: int = 5,
        most_shown: int = 500,
    ) -> None:
        self._tracker, self._most, self._first_pause = tracker, most, pause
        self._attempts, self._most_shown = attempts, most_shown
        self._waiting = deque[Item]()
        self._shown = 0  # of those that wait
        self._failures = 0  # in a row
        self._again = 0.0
        self._told = False
        self._why = ""
        self._dropped, self._first, self._last = 0, 0, 0
        self._refused = set[type[Shown]]()
        self.notes = deque[str]()
        self.taken = 0
        self.messages = deque[str]()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, step: int, epoch: int, numbers: Mapping[str, float]) -> None:
        """Let a point wait."""
        if len(self._waiting) - self._shown >= self._most:
            self._drop_oldest(shown=False)
        self._waiting.append(Item(step, epoch, numbers))

    def show(self, step: int, epoch: int, name: str, value: Shown) -> None:
        """Let a value wait; a kind that the tracker does not take is left out, and told once."""
        kind = type(value)
        if not isinstance(value, self._tracker.takes):
            if kind not in self._refused:
                self._refused.add(kind)
                self.notes.append(
                    f"{type(self._tracker).__name__} takes no {kind.kind}: {name!r}, and others of "
                    "that kind, are not in it."
                )
            return
        if self._shown >= self._most_shown:
            self._drop_oldest(shown=True)
        self._shown += 1
        self._waiting.append(Item(step, epoch, {}, (name, value)))

    def drop(self, step: int) -> None:
        """Note that the point of `step` is lost."""
        self._first = min(self._first, step) if self._dropped else step
        self._last = max(self._last, step)
        self._dropped += 1

    def _drop_oldest(self, shown: bool) -> None:
        item = next(item for item in self._waiting if (item.shown is not None) == shown)
        self._waiting.remove(item)
        self._shown -= shown
        self.drop(item.step)

    def _drop_next(self) -> None:
        item = self._waiting.popleft()
        self._shown -= item.shown is not None
        self.drop(item.step)

    def pause(self) -> float | None:
        """Seconds until the tracker is tried again; None if nothing waits."""
        return max(0.0, self._again - time.monotonic()) if self._waiting else None

    def send(self) -> None:
        """Hand the waiting points to the tracker, if it is time to try."""
        while self._waiting and time.monotonic() >= self._again:
            self._try()

    def finish(self) -> None:
        """Try all a last time, for a few seconds; say which points are lost."""
        self._failures, misses = 0, 0
        while self._waiting and misses < self._attempts + 2:
            if self._try():
                misses = 0
            else:
                time.sleep(self._first_pause / 2 * 2 ** min(misses, 3))
                misses += 1
        while self._waiting:
            self._drop_next()
        if self._dropped:
            steps = f"steps {self._first} to {self._last}"
            self.messages.append(
                f"The tracker {type(self._tracker).__name__} lacks {self._dropped} points of this "
                f"run ({steps if self._dropped > 1 else f'step {self._first}'}): {self._why}"
            )

    def _try(self) -> bool:
        step, epoch, numbers, shown = self._waiting[0]
        try:
            if shown is None:
                self._tracker.log(numbers, step, epoch)
            else:
                self._tracker.show(*shown, step, epoch)
        except Exception as error:
            self._failed(step, error)
            return False
        self._waiting.popleft()
        self._shown -= shown is not None
        self._failures, self._again = 0, 0.0
        self.taken += 1
        return True

    def _failed(self, step: int, error: Exception) -> None:
        self._failures += 1
        self._why = f"{type(error).__name__}: {error}"
        self._again = time.monotonic() + min(60.0, self._first_pause * 2 ** (self._failures - 1))
        if not self._told:
            self._told = True
            self.messages.append(
                f"The tracker {type(self._tracker).__name__} failed at step {step}: {self._why}. "
                f"Training goes on; its points are kept, at most {self._most}, and tried again."
            )
        if not isinstance(error, OSError) and self._failures >= self._attempts:
            self._drop_next()
            self._failures = 0
