"""``Combined``: the base of sources that read batches from several others."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Self

from fnloop.data.batches import START
from fnloop.data.iterables import Pairs, is_once
from fnloop.data.sources import Source, as_source
from fnloop.values.cursor import Cursor
from fnloop.values.key import fold


class Combined:
    """A source whose batches come from others. A subclass defines `read` and sets `batches`.

    It remembers nothing: which batch of which part comes at (epoch, index) is computed, so it
    resumes as its parts do. The cursor's index counts its batches.

    Args:
        who: The function that makes it, for messages.
        parts: The data by name. Random numbers of each are its own, by its name.

    Raises:
        TypeError: One is not accepted as data, or cannot begin anew.
        ValueError: There is none.
    """

    batch_size = 1
    batches: int | None = None

    def __init__(self, who: str, parts: Mapping[str, Any]) -> None:
        if not parts:
            raise ValueError(f"fl.data.{who} was given no data.")
        self._who = who
        self._parts = {name: as_source(part) for name, part in parts.items()}
        self.fresh = all([getattr(part, "fresh", True) for part in self._parts.values()])
        self.lent = all([getattr(part, "lent", False) for part in self._parts.values()])
        for name, part in self._parts.items():
            if is_once(part) or _about(part).get("exact") == "by its own state":
                raise TypeError(
                    f"fl.data.{who} reads the epochs of its parts by their number, and part "
                    f"{name!r} goes on from a position of its own: it is an iterator, or a loader "
                    "with state_dict. Give a list, fl.Batches, a torch DataLoader, or a function "
                    "epoch -> iterable of batches."
                )

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        epoch, index, count = cursor
        if self.batches is not None and index >= self.batches:  # other parts than before
            epoch, index = epoch + 1, 0
        readers = {
            name: PartReader(name, part, fold(key, name)) for name, part in self._parts.items()
        }
        try:
            while True:
                batch, ended = self.read(readers, epoch, index)
                epoch, index, count = (
                    (epoch + 1, 0, count + 1) if ended else (epoch, index + 1, count + 1)
                )
                yield Cursor(epoch, index, count), batch
        finally:
            for reader in readers.values():
                reader.close()

    def read(self, readers: Mapping[str, PartReader], epoch: int, index: int) -> tuple[Any, bool]:
        """The batch at a place, and whether it is the last one of the epoch."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """The fingerprints of the parts, and how exactly they resume together."""
        parts = {name: _about(part) for name, part in self._parts.items()}
        found = {name: about.get("exact", "by skipping") for name, about in parts.items()}
        worst = max(found, key=lambda name: ("at once", "by skipping", "no").index(found[name]))
        why = parts[worst].get("reason")
        return {
            "kind": self._who,
            "batches": self.batches,
            "index": "batches",
            "exact": found[worst],
            **({} if why is None else {"reason": f"{worst}: {why}"}),
            **{f"{name}.{key}": value for name in parts for key, value in parts[name].items()},
        }

    def ordered(self) -> Self:
        """See `Source`."""
        same = copy.copy(self)
        same._parts = {
            name: getattr(part, "ordered", lambda part=part: part)()
            for name, part in self._parts.items()
        }
        return same

    def lengths(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """Batches in an epoch of each part, or of some.

        Raises:
            ValueError: One does not know.
        """
        found: dict[str, int] = {}
        for name in self._parts if names is None else names:
            batches = self._parts[name].batches
            if batches is None:
                raise ValueError(
                    f"fl.data.{self._who} computes what comes where, and part {name!r} does not "
                    "know how many batches an epoch has. Say it: fl.data.limit(data, n), if there "
                    "are n at least; or give data with a length."
                )
            found[name] = batches
        return found


class PartReader:
    """Reads batches of one part, by epoch and number. Those that follow are read on."""

    def __init__(self, name: str, source: Source, key: int) -> None:
        self._name, self._source, self._key = name, source, key
        self._size: int = getattr(source, "batch_size", 1)
        self._next = (-1, -1)
        self._batches: Pairs | None = None

    def at(self, epoch: int, index: int) -> tuple[Any, bool]:
        """The batch, and whether it is the last one of the part's epoch.

        Raises:
            ValueError: The epoch has more or fewer batches than the part had said.
        """
        if (epoch, index) != self._next or self._batches is None:
            self.close()
            start = Cursor(epoch, index * self._size, 0)
            self._batches = self._source.iterate(start, self._key)
        after, batch = next(self._batches)
        ended, batches = after.index == 0, self._source.batches
        if batches is not None and ended != (index + 1 == batches):
            less = "ends" if ended else "does not end"
            raise ValueError(
                f"Part {self._name!r} has said that an epoch has {batches} batches, and epoch "
                f"{epoch} {less} after {index + 1}. What comes where follows from the number: give "
                "it another len(), or fl.data.limit(data, n) with an n that each epoch has."
            )
        self._next = (epoch + 1, 0) if ended else (epoch, index + 1)
        return batch, ended

    def close(self) -> None:
        """End the reading."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _about(part: Source) -> dict[str, Any]:
    ask: Any = getattr(part, "about", None)
    return (ask() if ask else None) or {}
