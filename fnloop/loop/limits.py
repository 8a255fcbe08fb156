"""The limits of a run: steps and epochs at most and at least, seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

from fnloop.data.sources import Source
from fnloop.effects.effect import Effect
from fnloop.values.counts import as_count, as_number
from fnloop.values.cursor import Cursor
from fnloop.values.rhythm import Pace


class Limits:
    """Tells when to stop drawing batches."""

    def __init__(
        self,
        start: Cursor,
        steps: int | None,
        epochs: int | None,
        seconds: float | None,
        min_steps: int | None = None,
        min_epochs: int | None = None,
    ) -> None:
        self.start = start
        self.count = None if steps is None else start.count + as_count(steps, "steps=")
        self.epoch = None if epochs is None else start.epoch + as_count(epochs, "epochs=")
        self.least = (
            start.count + (0 if min_steps is None else as_count(min_steps, "min_steps=")),
            start.epoch + (0 if min_epochs is None else as_count(min_epochs, "min_epochs=")),
        )
        for least, most, unit in ((min_steps, steps, "steps"), (min_epochs, epochs, "epochs")):
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"min_{unit}={least} is more than {unit}={most}, at which the run ends."
                )
        self.seconds = None if seconds is None else as_number(seconds, "seconds=")
        self.deadline = float("inf")
        self.out_of_time = False
        self.alone = True  # else the ranks agree on whether the time is over

    def begin(self) -> None:
        if self.seconds is not None:
            self.deadline = time.monotonic() + self.seconds

    def reached(self, cursor: Cursor, effects: Sequence[Effect]) -> bool:
        """Whether to end before the batch at `cursor`, which leaves effects time to close."""
        if self.done(cursor):
            return True
        if self.seconds is not None and self.alone:
            self.out_of_time = self.late(effects)
        return self.out_of_time

    def done(self, cursor: Cursor) -> bool:
        """Whether all steps or epochs are done before the batch at `cursor`."""
        if self.count is not None and cursor.count >= self.count:
            return True
        return self.epoch is not None and cursor.epoch >= self.epoch

    def too_early(self, cursor: Cursor) -> bool:
        """Whether a callback that asks for a stop at `cursor` is to be held back."""
        return Pace(least=self.least).too_early(cursor)

    def late(self, effects: Sequence[Effect]) -> bool:
        """Whether the time is over, but for what effects need to close."""
        if self.seconds is None:
            return False
        return time.monotonic() + sum(effect.closing for effect in effects) >= self.deadline

    def outcome(self) -> tuple[str, str]:
        """The status of a run that has reached its limit; and the reason, for a time limit."""
        if self.out_of_time:
            return "stopped", f"the time limit of {self.seconds:g} seconds"
        return "completed", ""

    def ended_early(self, cursor: Cursor) -> str:
        """The status of a run whose data has ended; warns if there was a limit."""
        if self.count is None and self.epoch is None and self.seconds is None:
            return "completed"
        warnings.warn(
            f"The data ended after {cursor.count - self.start.count} batches, before the run did: "
            "an iterator is read only once. For more, pass a list, fl.Batches, a DataLoader or a "
            "function epoch -> iterable.",
            stacklevel=4,
        )
        return "stopped"

    def total(self, source: Source) -> int | None:
        """Number of batches that will be drawn; None if unknown."""
        totals = [] if self.count is None else [self.count - self.start.count]
        if self.epoch is not None and source.batches is not None:
            done = Pace.of(source).within(self.start)
            totals.append(max(0, (self.epoch - self.start.epoch) * source.batches - done))
        return min(totals, default=None)
