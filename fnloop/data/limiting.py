"""``limit``: epochs of a few batches."""

from __future__ import annotations

import math
from contextlib import closing
from numbers import Integral, Real
from typing import Any

from fnloop.data.batches import START
from fnloop.data.bundle import Data, sets_of
from fnloop.data.iterables import Pairs, is_once
from fnloop.data.sources import Source, as_source
from fnloop.data.wrapping import Wrapped
from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor

SMOKE = 2
"""Batches of everything in a smoke run: a second one is read by what the first has left."""


@explained
def limit(data: Any, n: int | float, same: bool = False) -> Any:
    """Data whose epochs have `n` batches, or a fraction of them.

    Each epoch begins anew, and so with other batches if the data is shuffled; a run resumes as it
    does with the data itself. It can stand wherever data does: in `fl.fit`, `fl.validate`,
    `fl.evaluate`, `fl.predict`. A loader that keeps a position of its own, and an iterator, go on
    from there: an epoch is the next `n` batches.

    To see whether a model can learn a few batches by heart, train on the same ones in every epoch,
    and validate on them:

        few = fl.data.limit(data, 4, same=True)
        fl.fit(step, state, few, epochs=100, callbacks=[
            fl.every(1, fl.validate(loss, few), unit="epoch")])

    Args:
        data: Anything that `fl.run` accepts; of `fl.Data`, and of several sets by
            name, each is limited.
        n: An int is a number of batches, at least 1; a float is a fraction of an epoch, above 0 and
            at most 1, rounded down to whole batches, of which at least one is left. So ``1`` is one
            batch, and ``1.0`` is all.
        same: Whether each epoch has the batches of the first one, in its order and with its
            augmentation.

    Raises:
        TypeError: `same` of data that cannot begin anew: an iterator, or a loader that keeps its
            own position.
        ValueError: `n` is out of bounds; or a fraction of data that does not know its length.

    >>> import torch, fnloop as fl
    >>> data = fl.Batches(torch.arange(10), batch_size=2)
    >>> batches = limit(data, 2).iterate()
    >>> for _ in range(4):
    ...     after, batch = next(batches)
    ...     print(after, batch.tolist())
    Cursor(epoch=0, index=2, count=1) [9, 0]
    Cursor(epoch=1, index=0, count=2) [1, 5]
    Cursor(epoch=1, index=2, count=3) [6, 5]
    Cursor(epoch=2, index=0, count=4) [7, 8]
    >>> limit(data, 0.5).batches, limit(data, 0.01).batches, limit(data, 1.0).batches
    (2, 1, 5)
    """
    if isinstance(data, Data):
        return data.map(lambda part: limit(part, n, same))
    if (sets := sets_of(data)) is not None:
        return {name: limit(part, n, same) for name, part in sets.items()}
    source = as_source(data)
    batches, name = _batches(n, source), short(data)
    if same:
        return Limited(Repeated(source, name), batches, f"limit({name}, {n}, same=True)")
    return Limited(source, batches, f"limit({name}, {n})")


class Limited(Wrapped):
    """The source that `limit` makes: its epochs end after so many batches."""

    def __init__(self, source: Source, batches: int, name: str) -> None:
        super().__init__(source)
        self._most, self._name = batches, name
        self.batches = batches if source.batches is None else min(batches, source.batches)

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        end = self._most * self.batch_size  # in the units of the cursor's index
        if cursor.index >= end:  # from a run with a higher limit
            cursor = Cursor(cursor.epoch + 1, 0, cursor.count)
        while True:
            cut = None
            with closing(self._source.iterate(cursor, key)) as batches:
                for after, batch in batches:
                    if after.index >= end:
                        cut = after, batch
                        break
                    yield after, batch
            if cut is None:  # an iterator has ended
                return
            cursor = self.cut(cut[0])
            yield cursor, cut[1]

    def about(self) -> dict[str, Any]:
        """The fingerprint of the data, with the limit."""
        return {**(super().about() or {}), "batches": self.batches, "limit": self._most}

    def __repr__(self) -> str:
        return self._name


class Repeated(Wrapped):
    """A source each of whose epochs is the first one of another."""

    def __init__(self, source: Source, name: str) -> None:
        super().__init__(source)
        known = self.about()
        if is_once(source) or (known and known.get("exact") == "by its own state"):
            raise TypeError(
                "limit(..., same=True) reads the same batches in each epoch, and this data "
                f"({name}) goes on from its own position. Give the batches as a list: "
                "[*itertools.islice(loader, 4)]."
            )

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        while True:
            with closing(self._source.iterate(cursor._replace(epoch=0), key)) as batches:
                for after, batch in batches:
                    if after.epoch:
                        cursor = Cursor(cursor.epoch + 1, 0, after.count)
                    else:
                        cursor = after._replace(epoch=cursor.epoch)
                    yield cursor, batch
                    if after.epoch:
                        break

    def about(self) -> dict[str, Any]:
        """The fingerprint of the data, with a word on the order."""
        return {**(super().about() or {}), "same": True}


def _batches(n: Any, source: Source) -> int:
    """The number of batches that `n` means for a source."""
    if isinstance(n, bool) or not isinstance(n, Real):
        raise TypeError(
            "limit takes a number of batches (an int) or a fraction of an epoch (a float), got "
            f"{short(n)} ({type(n).__name__})."
        )
    if isinstance(n, Integral):
        return as_count(n, "limit(data, n)", 1)
    part = float(n)
    if not 0 < part <= 1:
        whole = f" For {part:.0f} batches write {part:.0f}." if part > 1 and part % 1 == 0 else ""
        raise ValueError(
            "limit takes a fraction of an epoch as a float above 0 and at most 1, or a number of "
            f"batches as an int; got {part!r}.{whole}"
        )
    if source.batches is None:
        raise ValueError(
            f"limit(data, {part:g}) is a fraction of an epoch, and this data does not know how "
            "many batches an epoch has. Give a number of batches, or data with a length."
        )
    # 0.29 of 100 batches are 29, and not 28 as in binary fractions.
    return max(1, math.floor(round(part * source.batches, 6)))
