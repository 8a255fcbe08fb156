"""Sources of batches made from iterables, iterators and functions."""

from __future__ import annotations

import copy
import dis
import inspect
import itertools
import types
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

from fnloop.data.batches import START
from fnloop.data.fingerprint import sample_of_list
from fnloop.data.nested import Epochs, inexact
from fnloop.data.order import check_drawn, check_order
from fnloop.data.overwriting import HeldBatches
from fnloop.data.reading_thread import started
from fnloop.data.seeding import seeding
from fnloop.values.cursor import Cursor
from fnloop.values.key import fold

END: Any = object()
Restart = Callable[[int], Iterable[Any]]
Pairs = Generator[tuple[Cursor, Any], None, None]


class Again:
    """An iterable that is restarted each epoch; to resume, batches up to the cursor are skipped."""

    watched = False  # whether it is checked that reading draws no random number
    fresh = False  # whether each batch is known to have memory of its own

    def __init__(
        self, epochs: Restart, batches: int | None, kind: str = "iterable", data: Any = None
    ) -> None:
        self.batches = batches
        self.kind = kind
        self._epochs = epochs
        self._data = data
        self._told = Epochs(data)

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        epoch, index, count = cursor
        while True:
            with closing(self._read(epoch, index, fold(key, epoch))) as items:
                batch = next(items, END)
                if batch is END:
                    raise ValueError(too_short(epoch, index, self.batches))
                held = None if self.fresh else HeldBatches(self, 1)
                if held is not None:
                    held.add(count + 1, batch)
                for following in items:
                    index, count = index + 1, count + 1
                    if held is not None:
                        held.add(count + 1, following)
                    yield Cursor(epoch, index, count), batch
                    batch = following
            epoch, index, count = epoch + 1, 0, count + 1
            yield Cursor(epoch, index, count), batch

    def about(self) -> dict[str, Any]:
        """Its fingerprint."""
        return {
            "kind": self.kind,
            "batches": self.batches,
            "index": "batches",
            "exact": "by skipping",
            **inexact(self._data),
        }

    def ordered(self) -> Again:
        """See `Source`."""
        check_order(self._data)
        same = copy.copy(self)
        same.watched = True
        return same

    def _read(self, epoch: int, index: int, seed: int) -> Generator[Any, None, None]:
        """The batches of an epoch, from batch `index` on."""
        self._told.begin(epoch)
        return read(lambda: self._epochs(epoch), index, seed, self.watched)


class Stored(Again):
    """A list of batches. Reading it draws no random numbers."""

    fresh = lent = True

    def __init__(self, stored: list[Any]) -> None:
        super().__init__(lambda epoch: stored, len(stored), "list")
        self._stored = stored

    def about(self) -> dict[str, Any]:
        """Its fingerprint."""
        return super().about() | {"exact": "at once", "sample": sample_of_list(self._stored)}

    def _read(self, epoch: int, index: int, seed: int) -> Generator[Any, None, None]:
        yield from itertools.islice(self._stored, index, None)


class Once:
    """An iterator. It continues from its current position, whatever the cursor.

    An epoch ends after ``len(items)`` batches, if it has a length; some loaders begin anew then.
    """

    once = True
    watched = False
    fresh = False
    kind = "iterator"

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.batches: int | None = length(items)

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        epoch, index, count = cursor
        while True:
            seed = fold(key, epoch, index)
            with seeding(seed):
                batch = next(self._items, END)
                if self.watched:
                    check_drawn(seed, self._items)
            if batch is END:
                break
            index, count = index + 1, count + 1
            if index == self.batches:
                epoch, index = epoch + 1, 0
            yield Cursor(epoch, index, count), batch
        if count == cursor.count:
            raise ValueError(
                f"This iterator is exhausted: a {type(self._items).__name__} can be read only "
                "once, and it gave no batch. To read the data again, pass a list, fl.Batches, a "
                "DataLoader, or a function epoch -> iterable."
            )

    def about(self) -> dict[str, Any]:
        """Its fingerprint."""
        return {
            "kind": self.kind,
            "batches": self.batches,
            "index": "batches",
            "exact": "no",
            "reason": "an iterator can be read only once: it continues from its current position",
        }

    def ordered(self) -> Once:
        """See `Source`."""
        check_order(self._items)
        same = copy.copy(self)
        same.watched = True
        return same


def read(
    start: Callable[[], Iterable[Any]], index: int, seed: int, watched: bool = False
) -> Generator[Any, None, None]:
    """Yield items from number `index` on. Their random numbers depend on `seed` and their number.

    Args:
        start: Returns the iterable.
        index: Number of items to read and skip.
        seed: Seed of the epoch.
        watched: Whether random numbers are refused.
    """

    def begin() -> tuple[Any, Iterator[Any]]:
        with seeding(seed):
            data = start()
            if watched:
                check_order(data)
            items = iter(data)
            if watched:
                check_drawn(seed, data)
        return data, items

    data, items = started(begin)
    for number in itertools.count():
        with seeding(fold(seed, number)):
            item = next(items, END)
            if watched:
                check_drawn(fold(seed, number), data)
        if item is END:
            return
        if number >= index:
            yield item


def function_epochs(function: Callable[[int], Any]) -> Restart:
    """Wrap a user's function ``epoch -> iterable`` with checks of its signature and result.

    Raises:
        TypeError: It does not take the epoch; or, at the call, does not return an iterable.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        raise TypeError(
            f"The data function {name} must take the epoch: def {name}(epoch): ... and return or "
            "yield the batches of that epoch."
        ) from None
    except ValueError:  # a builtin without a signature
        pass

    def epochs(epoch: int) -> Iterable[Any]:
        batches = function(epoch)
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"The data function {name} returned {type(batches).__name__} for epoch {epoch}; it "
                "must return or yield the batches of that epoch."
            )
        return batches

    return epochs


def is_once(data: Any) -> bool:
    """Whether `data` is an iterator that goes on where it stands each time that it is iterated.

    So is what wraps one (`fl.data.limit`, `fl.data.prefetch`). A loader whose ``__iter__`` starts
    anew and returns itself is none: its ``__iter__`` does more than to return ``self``. An
    ``__iter__`` that is not written in Python is that of an iterator.

    >>> is_once(zip([1])), is_once([1])
    (True, False)
    """
    if not isinstance(data, Iterator):
        return getattr(data, "once", False) is True
    code = getattr(type(data).__iter__, "__code__", None)
    return code is None or _only_returns_itself(code)


def _only_returns_itself(code: types.CodeType) -> bool:
    names = [step.opname for step in dis.get_instructions(code)]
    does = [name for name in names if name not in ("RESUME", "NOP", "CACHE")]
    return len(does) == 2 and does[0].startswith("LOAD_FAST") and does[1] == "RETURN_VALUE"


def length(data: Any) -> int | None:
    """``len(data)``, or None if it has none."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def too_short(epoch: int, index: int, batches: int | None) -> str:
    """The error message for an epoch that ends before the cursor."""
    if index == 0:
        return (
            f"Epoch {epoch} of the data has no batch. Usual cause: the data is empty, or it can be "
            "iterated only once (its __iter__ returns the same iterator each time); pass a list "
            "or a function epoch -> iterable."
        )
    has = "fewer" if batches is None else batches
    return (
        f"The cursor stands at batch {index} of epoch {epoch}, which has {has}. Usual cause: the "
        "run was started with other data or another batch size. To begin this data anew: "
        "state.replace(cursor=fl.data.Cursor().tensor())."
    )
