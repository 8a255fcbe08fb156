"""Search for the largest size that fits, and ``BatchSizeSearch``: what was found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One size that was tried.

    Attributes:
        size: Examples in the batch.
        fits: Whether all its steps ran.
        seconds: Of its fastest step; None if it did not fit.
    """

    size: int
    fits: bool
    seconds: float | None = None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.size:,}: not enough memory"
        return f"{self.size:,}: {self.seconds:.3g} s a step, {self.rate} a second"

    @property
    def rate(self) -> str:
        """Examples a second, as text."""
        number = self.size / (self.seconds or math.inf)
        return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


@dataclasses.dataclass(frozen=True)
class BatchSizeSearch:
    """What `fl.tuning.find_batch_size` has found.

    Attributes:
        trials: What was tried, in order.
        most: The largest size that was allowed.
    """

    trials: tuple[Attempt, ...]
    most: int

    @property
    def suggestion(self) -> int | None:
        """The largest size of which all steps ran; None if not even one example fits."""
        return max([trial.size for trial in self.trials if trial.fits], default=None)

    @property
    def reason(self) -> str:
        """Why there is no larger suggestion."""
        if self.suggestion is None:
            return f"not even a batch of {min(trial.size for trial in self.trials)} fits"
        failed = [trial.size for trial in self.trials if not trial.fits]
        return f"{min(failed):,} does not fit" if failed else f"{self.most:,} is the most allowed"

    def table(self) -> str:
        """The trials, by size."""
        lines = [f"{'size':>9}  {'s a step':>9}  {'a second':>9}"]
        for trial in sorted(self.trials, key=lambda trial: trial.size):
            size, seconds = f"{trial.size:>9,}", trial.seconds
            if seconds is None:
                lines.append(f"{size}  not enough memory")
            else:
                mark = "  <- suggestion" if trial.size == self.suggestion else ""
                lines.append(f"{size}  {seconds:>9.3g}  {trial.rate:>9}{mark}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        found = "none" if self.suggestion is None else f"{self.suggestion:,}"
        return f"find_batch_size: {found}; {self.reason} ({len(self.trials)} sizes tried)"


def largest(
    fits: Callable[[int], bool], start: int, most: int, search: Literal["power", "binary"]
) -> None:
    """Call `fits` with sizes until the largest is known.

    From `start` on sizes are doubled, and after a failure of the first one halved. That is all of a
    search by powers. A binary one goes on between the largest that fits and the smallest that does
    not; or tries `most`, if nothing failed.

    Args:
        fits: Tries a size.
        start, most: The first size, and the largest one allowed.

    >>> def tried(limit, *args):
    ...     sizes = []
    ...     largest(lambda size: sizes.append(size) or size <= limit, *args)
    ...     return sizes
    >>> tried(70, 2, 100, "power"), tried(99, 2, 100, "power")
    ([2, 4, 8, 16, 32, 64], [2, 4, 8, 16, 32, 64])
    >>> tried(5, 2, 100, "binary"), tried(100, 2, 100, "binary")[-2:]
    ([2, 4, 8, 6, 5], [64, 100])
    >>> tried(3, 16, 100, "power"), tried(3, 16, 100, "binary"), tried(0, 2, 100, "power")
    ([16, 8, 4, 2], [16, 8, 4, 2, 3], [2, 1])
    """
    low, high, size = 0, most + 1, min(start, most)  # `low` fits, `high` does not
    while low < size < high:
        if fits(size):
            low, size = size, 2 * size
        else:
            high, size = size, size // 2
    while search == "binary" and high - low > 1:
        size = most if high > most else (low + high) // 2
        if fits(size):
            low = size
        else:
            high = size
