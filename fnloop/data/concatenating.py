"""``concat``: several data sets, one after the other in each epoch."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from typing import Any

from fnloop.data.combined import Combined, PartReader


def concat(*parts: Any) -> Concatenated:
    """Data whose epochs are those of its parts, one after the other.

    Resumes at every step as its parts do. To train on one data set for some epochs and then on
    another, call `fl.fit` twice: it goes on with the state.

    Args:
        parts: Each is anything that `fl.run` accepts and that can begin anew.

    Raises:
        TypeError: A part is not accepted, or goes on from a position of its own.
        ValueError: There is none, or one before the last does not know its length.

    >>> for after, batch in zip(range(4), concat(["a"], ["b0", "b1"]).iterate()):
    ...     print(*batch)
    Cursor(epoch=0, index=1, count=1) a
    Cursor(epoch=0, index=2, count=2) b0
    Cursor(epoch=1, index=0, count=3) b1
    Cursor(epoch=1, index=1, count=4) a
    """
    return Concatenated({str(number): part for number, part in enumerate(parts)})


class Concatenated(Combined):
    """The source that `concat` makes."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__("concat", parts)
        self._names = [*self._parts]
        last = self._parts[self._names[-1]].batches
        before = self.lengths(self._names[:-1])
        self._starts = [0, *itertools.accumulate(before.values())]
        self.batches = None if last is None else self._starts[-1] + last

    def read(self, readers: Mapping[str, PartReader], epoch: int, index: int) -> tuple[Any, bool]:
        """See `Combined`."""
        number = bisect.bisect_right(self._starts, index) - 1
        batch, over = readers[self._names[number]].at(epoch, index - self._starts[number])
        return batch, over and number == len(self._names) - 1

    def __repr__(self) -> str:
        return f"concat({len(self._names)} parts)"
