"""``Rhythm``: every how many steps, epochs or seconds something is due."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Self

from fnloop.trees.show import short
from fnloop.values.counts import as_count, as_number
from fnloop.values.cursor import Cursor

Unit = Literal["step", "epoch", "second"]


class Pace(NamedTuple):
    """How a run's data advances.

    Attributes:
        batches: Batches in an epoch; None if unknown.
        size: What a batch adds to the cursor's index.
        least: Batches and epochs, by the cursor, before which no callback can stop the run.
    """

    batches: int | None = None
    size: int = 1
    least: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, source: Any, least: tuple[int, int] = (0, 0)) -> Pace:
        """That of a source of data."""
        return cls(source.batches, getattr(source, "batch_size", 1), least)

    def within(self, cursor: Cursor) -> int:
        """Batches drawn in the cursor's epoch."""
        return -(-cursor.index // self.size)

    def too_early(self, cursor: Cursor) -> bool:
        """Whether a callback that asks for a stop at `cursor` is to be held back."""
        count, epoch = self.least
        return cursor.count < count or cursor.epoch < epoch


class Rhythm:
    """Tells at which batches something is due that comes every so often.

    For steps and epochs that depends on the cursor alone, so a resumed run keeps the rhythm. A
    fraction of an epoch is due with the batch that completes it: a quarter of ten batches after
    batch 3, 5, 8 and 10. For seconds the loop looks at the clock before each step, once for all
    that ask, and on many ranks for all of them: see `strike`.

    Args:
        n: Every how many.
        unit: ``"step"``, ``"epoch"`` or ``"second"``.
        who: The call, for messages: ``"every(n, ...)"``.

    >>> quarters = Rhythm(0.25, "epoch", "every(n, ...)").begun(Pace(batches=10))
    >>> [batch for batch in range(1, 10) if quarters.is_due(Cursor(0, batch, batch))]
    [3, 5, 8]
    >>> quarters.is_due(Cursor(1, 0, 10))
    True
    """

    def __init__(self, n: Any, unit: str, who: str) -> None:
        if unit not in ("step", "epoch", "second"):
            raise ValueError(f'{who}: unit={unit!r}; expected "step", "epoch" or "second".')
        self.unit, self.who = unit, who
        self.n: Any = _checked(n, unit, who)
        self._pace = Pace()
        self._deadline = 0.0
        self._struck: int | None = None

    @property
    def is_timed(self) -> bool:
        """Whether it goes by the clock."""
        return self.unit == "second"

    def begun(self, pace: Pace) -> Self:
        """Itself, for a run that begins now.

        Raises:
            ValueError: It counts fractions of an epoch, whose length nobody knows.
        """
        if isinstance(self.n, Fraction) and pace.batches is None:
            raise ValueError(
                f"{self.who} is to come every {float(self.n):g} epochs, and this data does not "
                'know how many batches an epoch has. Count batches: unit="step".'
            )
        self._pace, self._struck = pace, None
        self._deadline = time.monotonic() + float(self.n) if self.is_timed else 0.0
        return self

    def is_due(self, cursor: Cursor) -> bool:
        """Whether it is due at the batch before `cursor`."""
        if self.unit == "step":
            return cursor.count % self.n == 0
        if self.is_timed:
            return self._struck == cursor.count
        if isinstance(self.n, Fraction):
            return self._completes(cursor)
        return cursor.index == 0 and cursor.count > 0 and cursor.epoch % self.n == 0

    def is_late(self) -> bool:
        """Whether the seconds since it last came are over."""
        return time.monotonic() >= self._deadline

    def strike(self, count: int) -> None:
        """It is due at the batch of this count; the next time so many seconds from now."""
        self._struck = count
        self._deadline = time.monotonic() + float(self.n)

    def _completes(self, cursor: Cursor) -> bool:
        batches = self._pace.batches or 1
        drawn = cursor.epoch * batches + self._pace.within(cursor)
        part = self.n * batches
        return drawn // part > (drawn - 1) // part and cursor.count > 0


def _checked(n: Any, unit: str, who: str) -> int | float | Fraction:
    if unit == "second":
        return as_number(n, who, above=True)
    if unit == "step" or not isinstance(n, float):
        return as_count(n, who, 1)
    if not 0 < n < float("inf"):
        raise ValueError(f"{who} takes a number of epochs above 0, got {short(n)}.")
    part = Fraction(n).limit_denominator(1 << 20)  # a third is a third
    return int(part) if part.denominator == 1 else part
