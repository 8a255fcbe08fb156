"""The internal protocol of data sources, and conversion of user data to it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader, Dataset, IterableDataset

from fnloop.data.batches import START, Batches
from fnloop.data.bundle import Data, sets_of
from fnloop.data.iterables import Again, Once, Stored, function_epochs, is_once, length
from fnloop.data.loader import Loader
from fnloop.data.order import check_order
from fnloop.data.readers import check_data, is_columns
from fnloop.data.stateful import Stateful, StatefulOnce, is_stateful
from fnloop.values.cursor import Cursor


@runtime_checkable
class Source(Protocol):
    """Yields batches from a cursor on.

    A source may have four more methods. ``about()`` returns its fingerprint, as
    JSON. ``memo(cursor)`` returns its position, as JSON or None, after the batch yielded with
    `cursor` (which must be that object, not a copy). ``recall(memo)`` makes the next `iterate`
    continue from there. ``ordered()`` returns a source in the data's own order, and raises a
    `ValueError` if there is none; the order of a source without it is taken to be its own. Its
    attribute ``fresh`` is false if a batch may be written over an earlier one, and ``lent`` is true
    if a batch lies in memory of the user's, which is to be read again.

    Attributes:
        batches: Batches per epoch; None if unknown.
    """

    batches: int | None

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """Yield pairs of the cursor after a batch and the batch, epoch after epoch.

        Args:
            cursor: Where to start.
            key: Root of the data's randomness, an int64.
        """
        ...


def as_source(data: Any) -> Source:
    """Convert any accepted data to a `Source`.

    Random numbers that the data draws for batch `i` of epoch `e` from torch's CPU generator,
    Python's ``random`` and numpy's global generator are a function of (key, e, i); the state of
    these generators is restored. So repeating an epoch, or skipping to where a run stopped, gives
    the same batches.

    A ``DataLoader``'s order is a function of (key, e): its generator and its sampler's are reseeded
    each epoch. Random numbers of ``dataset[i]`` are a function of (key, e, i) and of how often i
    was drawn before in the epoch, not of workers or batches.

    Args:
        data: One of:

            - `fl.Batches` and `fl.data.prefetch`: resume exactly, without reading skipped batches;
            - an iterable with ``state_dict`` and ``load_state_dict`` (or ``get_state`` and
              ``set_state``): resumes from its own state;
            - a ``DataLoader``, a list of batches, or any other object that can be iterated again:
              restarted each epoch, and skipped to the cursor's `index`, which counts batches (a
              ``DataLoader`` with a map-style dataset skips indices, not examples); one batch is
              read ahead, to detect the end of the epoch;
            - a function ``epoch -> iterable of batches``: called each epoch;
            - an iterator or generator: read once from its current position, without reading ahead
              (one whose ``__iter__`` does more than to return itself is iterated again);
            - a tensor, an array, or a tuple, dict or tree of them: one batch with all the data per
              epoch. Use ``fl.Batches(data, batch_size)`` for smaller batches;
            - `fl.Data`: its part ``train``.

    Raises:
        TypeError: `data` is a dataset of examples, which needs a batch size, or none of these.

    >>> batches = as_source(["a", "b"]).iterate(Cursor())
    >>> for _ in range(3):
    ...     print(*next(batches))
    Cursor(epoch=0, index=1, count=1) a
    Cursor(epoch=1, index=0, count=2) b
    Cursor(epoch=1, index=1, count=3) a
    """
    if isinstance(data, Data):
        return as_source(data.train)
    if isinstance(data, Source):
        return data
    check_data(data)
    if (sets := sets_of(data)) is not None:
        raise TypeError(
            f"This data is several sets by name ({', '.join(map(repr, sets))}), and one is read "
            "here. fl.validate and fl.evaluate take several. The columns of a batch are tensors."
        )
    if is_columns(data):
        return Batches(data, batch_size=1 << 62, shuffle=False)
    if is_stateful(data):
        return StatefulOnce(data) if is_once(data) else Stateful(data)
    if isinstance(data, DataLoader):
        return Loader(data)
    if _is_dataset(data):
        raise TypeError(
            f"{type(data).__name__} is a dataset of single examples, but training needs batches. "
            "Use fl.Batches(dataset, batch_size), or a torch DataLoader."
        )
    if isinstance(data, Iterator) and is_once(data):
        return Once(data)
    if isinstance(data, list):
        return Stored(data)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return Again(lambda epoch: data, length(data), data=data)
    if callable(data):
        return Again(function_epochs(data), None, "function", data)
    raise TypeError(
        f"{type(data).__name__} is not accepted as data. Use fl.Batches, a DataLoader, a list or "
        "other iterable of batches, a function epoch -> iterable, or a tuple or dict of tensors."
    )


def one_epoch(data: Any, key: int = 0, ordered: bool = False) -> Generator[Any, None, None]:
    """The batches of one epoch, for evaluation.

    Args:
        data: As for `as_source`.
        key: Root of the data's randomness, an int64.
        ordered: Whether they must be in the data's own order.

    Raises:
        ValueError: They must be, and are not.

    >>> list(one_epoch([1, 2]))
    [1, 2]
    """
    with closing(rest_of_epoch(data, key, ordered)) as batches:
        for _, batch in batches:
            yield batch


def rest_of_epoch(
    data: Any, key: int = 0, ordered: bool = False, start: Cursor = START
) -> Generator[tuple[Cursor, Any], None, None]:
    """The batches of an epoch from a cursor on, each with the cursor after it.

    Args:
        data, key, ordered: As for `one_epoch`.
        start: The cursor; what comes before it is read only where `data` keeps its own position.

    >>> list(rest_of_epoch([1, 2], start=Cursor(0, 1, 1)))
    [(Cursor(epoch=1, index=0, count=2), 2)]
    """
    source = as_source(data)
    ask: Any = getattr(source, "ordered", None)
    if ordered and ask is None:
        check_order(data)
    elif ordered:
        source = ask()
    tell: Any = getattr(source, "about", None)
    known = (tell and start.count and tell()) or {}
    read = START if known.get("exact") == "by its own state" else start
    with closing(source.iterate(read, key)) as batches:
        for after, batch in batches:
            if after.count > start.count:
                yield after, batch
            if after.epoch:
                return


def _is_dataset(data: Any) -> bool:
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    sequence = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return hasattr(data, "__getitems__") or (sequence and not isinstance(data, Iterable))
