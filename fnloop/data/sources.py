"""What the user gives as data, as one internal protocol."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fnloop._torch.random import seeded
from fnloop.data.batches import START, Batches
from fnloop.data.readers import is_columns
from fnloop.values import Cursor, fold

_END = object()
_Epochs = Callable[[int], Iterable[Any]]


@runtime_checkable
class Source(Protocol):
    """Batches from a cursor on.

    Attributes:
        batches: Batches in an epoch; None if that is not known.
    """

    batches: int | None

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """Pairs of the cursor after a batch, and the batch, epoch after epoch.

        Args:
            cursor: Where to start.
            key: Root of what is random in the data, an int64.
        """
        ...


def as_source(data: Any) -> Source:
    """Data of any accepted kind as a `Source`.

    What the data draws from torch's CPU generator while it gives batch `i` of epoch `e` (a
    ``DataLoader``'s shuffle, augmentations in the same process, a generator's ``torch.randn``) is a
    function of (key, e, i), and leaves the generator as it was; so the same epoch has the same
    order, and skipping to where a run stopped gives the batches that it would have had. A generator
    that a ``DataLoader`` or its sampler was given is seeded anew with each epoch.

    Args:
        data: One of:

            - `fl.Batches`, and what `fl.prefetch` returns: exact, without reading what is skipped;
            - a ``DataLoader``, a list of batches, or any other object that can be iterated again:
              started anew with each epoch, and skipped to the cursor's `index`, which counts
              batches; one batch is read ahead, to know the end of the epoch;
            - a function ``epoch -> iterable of batches``: called with each epoch;
            - an iterator or generator: read once, from where it stands, and never ahead;
            - a tensor, an array, or a tuple, dict or tree of them: one batch, all of the data, each
              epoch. Use ``fl.Batches(data, batch_size)`` for smaller ones.

    Raises:
        TypeError: For a dataset of examples, which needs a batch size, and for anything else.

    >>> batches = as_source(["a", "b"]).iterate(Cursor())
    >>> for _ in range(3):
    ...     print(*next(batches))
    Cursor(epoch=0, index=1, count=1) a
    Cursor(epoch=1, index=0, count=2) b
    Cursor(epoch=1, index=1, count=3) a
    """
    if isinstance(data, type):
        raise TypeError(f"Data is an object, not a class; create one: {data.__name__}(...).")
    if isinstance(data, Source):
        return data
    if is_columns(data):
        return Batches(data, batch_size=1 << 62, shuffle=False)
    if isinstance(data, DataLoader):
        return _Loader(data)
    if _is_dataset(data):
        raise TypeError(
            f"{type(data).__name__} is a dataset of single examples, and training takes batches. "
            "Use fl.Batches(dataset, batch_size), or a torch DataLoader."
        )
    if isinstance(data, Iterator):
        return _Once(data)
    if isinstance(data, list):
        return _Stored(lambda epoch: data, len(data))
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return _Again(lambda epoch: data, _length(data))
    if callable(data):
        return _Again(_function_epochs(data), None)
    raise TypeError(
        f"{type(data).__name__} is no data. Give fl.Batches, a DataLoader, a list or other "
        "iterable of batches, a function epoch -> iterable, or a tuple or dict of tensors."
    )


def one_epoch(data: Any, key: int = 0) -> Generator[Any, None, None]:
    """The batches of one pass over the data, as evaluation reads them.

    Args:
        data: As for `as_source`.
        key: Root of what is random in the data, an int64.

    >>> list(one_epoch([1, 2]))
    [1, 2]
    """
    with closing(as_source(data).iterate(START, key)) as batches:
        for after, batch in batches:
            yield batch
            if after.epoch:
                return


class _Again:
    """Data that is started anew with each epoch and skipped to the cursor's index."""

    def __init__(self, epochs: _Epochs, batches: int | None) -> None:
        self.batches = batches
        self._epochs = epochs

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        epoch, index, count = cursor
        while True:
            with closing(self._read(epoch, fold(key, epoch))) as items:
                skipped = sum(1 for _ in itertools.islice(items, index))
                batch = next(items, _END)
                if batch is _END:
                    raise ValueError(_too_short(epoch, index, skipped))
                for following in items:
                    index, count = index + 1, count + 1
                    yield Cursor(epoch, index, count), batch
                    batch = following
            epoch, index, count = epoch + 1, 0, count + 1
            yield Cursor(epoch, index, count), batch

    def _read(self, epoch: int, seed: int) -> Generator[Any, None, None]:
        with seeded(seed):
            items = iter(self._epochs(epoch))
        for index in itertools.count():
            with seeded(fold(seed, index)):
                item = next(items, _END)
            if item is _END:
                return
            yield item


class _Stored(_Again):
    """A list of batches: reading it draws no random numbers."""

    def _read(self, epoch: int, seed: int) -> Generator[Any, None, None]:
        yield from self._epochs(epoch)


class _Loader(_Again):
    """A ``DataLoader``, whose shuffle is made a function of the epoch's seed."""

    def __init__(self, loader: Any) -> None:
        super().__init__(lambda epoch: loader, _length(loader))
        batch_sampler = getattr(loader, "batch_sampler", None)
        self._loader = loader
        self._samplers: list[Any] = [
            loader.sampler,
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        ]

    def _read(self, epoch: int, seed: int) -> Generator[Any, None, None]:
        for part in (*self._samplers, self._loader.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        # Without a generator, a sampler takes its seed from the global one, after a draw for new
        # workers or without one where they persist. So that it does not matter, it is lent one.
        owners = [part for part in (self._loader, *self._samplers) if hasattr(part, "generator")]
        borrowers = [part for part in owners if part.generator is None]
        try:
            for owner in owners:
                if owner.generator is None:
                    owner.generator = torch.Generator()
                owner.generator.manual_seed(seed)
            # What worker processes draw follows from the loader's generator.
            yield from self._loader if self._loader.num_workers else super()._read(epoch, seed)
        finally:
            for part in borrowers:
                part.generator = None


class _Once:
    """An iterator: it goes on from where it stands, whatever the cursor says."""

    batches: int | None = None

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        epoch, index, count = cursor
        while True:
            with seeded(fold(key, epoch, index)):
                batch = next(self._items, _END)
            if batch is _END:
                break
            index, count = index + 1, count + 1
            yield Cursor(epoch, index, count), batch
        if index == cursor.index:
            raise ValueError(
                f"This iterator is exhausted: a {type(self._items).__name__} can be read only "
                "once, and it gave no batch. To read the data again, pass a list, fl.Batches, a "
                "DataLoader, or a function epoch -> iterable."
            )


def _function_epochs(function: Callable[[int], Any]) -> _Epochs:
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


def _is_dataset(data: Any) -> bool:
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    sequence = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return hasattr(data, "__getitems__") or (sequence and not isinstance(data, Iterable))


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _too_short(epoch: int, index: int, read: int) -> str:
    if index == 0:
        return (
            f"Epoch {epoch} of the data has no batch. Usual cause: the data is empty, or it can be "
            "iterated only once (its __iter__ returns the same iterator each time); pass a list "
            "or a function epoch -> iterable."
        )
    return (
        f"The cursor stands at batch {index} of epoch {epoch}, which has {read}. Usual cause: the "
        "run is resumed with other data, or another batch size, than it was started with."
    )
