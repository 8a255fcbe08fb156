"""``group``: a few batches of some data become one, for `fl.accumulate`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from fnloop.data.batches import START
from fnloop.data.iterables import Pairs
from fnloop.data.overwriting import HeldBatches
from fnloop.data.sources import Source, as_source
from fnloop.data.wrapping import Wrapped
from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.micro import Micro


@explained
def group(data: Any, k: int) -> Grouped:
    """Data whose batches are `k` batches of other data, for `fl.accumulate`.

    It is for a loader whose batches are as large as memory allows: each becomes a micro-batch of
    one `fl.data.Micro`, which is one step. The last one of an epoch has what is left, so that 10
    batches by 4 make steps of 4, 4 and 2, each with the mean over its own examples.

    A run resumes as it does with the data itself. In the cursor, `index` is that of the data, and
    `count` counts groups, which are the steps.

    Args:
        data: Anything that `fl.run` accepts.
        k: Batches in a group, at least 1.

    Raises:
        TypeError: `data` is not accepted, or `k` is no whole number.
        ValueError: `k` is below 1.

    >>> for after, batch in zip(range(3), group([10, 11, 12], 2).iterate()):
    ...     print(*batch)
    Cursor(epoch=0, index=2, count=1) Micro(parts=(10, 11))
    Cursor(epoch=1, index=0, count=2) Micro(parts=(12,))
    Cursor(epoch=1, index=2, count=3) Micro(parts=(10, 11))
    """
    return Grouped(as_source(data), as_count(k, "group(data, k)", 1), short(data))


class Grouped(Wrapped):
    """The source that `group` makes."""

    def __init__(self, source: Source, k: int, name: str) -> None:
        super().__init__(source)
        self._k, self._name = k, name
        self.batches = None if source.batches is None else -(-source.batches // k)
        self.batch_size *= k  # what a group adds to the index

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        count, parts, after = cursor.count, list[Any](), cursor
        held = None if self.fresh else HeldBatches(self._source, self._k, "group")
        with closing(self._source.iterate(cursor, key)) as batches:
            for after, batch in batches:
                parts.append(batch)
                if held is not None:
                    held.add(len(parts), batch)
                if len(parts) == self._k or not after.index:
                    count += 1
                    yield self._whole(after, count), Micro(tuple(parts))
                    parts = []
                    if held is not None:
                        held.clear()
        if parts:  # an iterator has ended
            yield self._whole(after, count + 1), Micro(tuple(parts))

    def about(self) -> dict[str, Any]:
        """The fingerprint of the data, with the size of the groups."""
        return {**(super().about() or {}), "group": self._k}

    def __repr__(self) -> str:
        return f"group({self._name}, {self._k})"

    def _whole(self, after: Cursor, count: int) -> Cursor:
        """The cursor after a group, which the data takes for one of its own."""
        counted = after._replace(count=count)
        self.left(counted)
        return counted
