"""Batches of in-memory or indexable data, as a pure function of the cursor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from fnloop.data.buckets import BucketOrder
from fnloop.data.fingerprint import sample_of_columns
from fnloop.data.order import check_order, refusal
from fnloop.data.readers import reader
from fnloop.data.shuffled import ShuffledOrder
from fnloop.data.weighted import WeightedOrder, checked_weights
from fnloop.data.whole import whole_numbers
from fnloop.names.arguments import whole
from fnloop.names.keywords import explained
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.key import fold

START = Cursor()
Order = ShuffledOrder | BucketOrder | WeightedOrder
_AHEAD = 3 << 13  # positions shuffled at once: a batch of 64 then takes 1 us instead of 70
_CUT = 32  # batches cut from them at once, at most: each is a tensor of its own

_FIXED = frozenset(("batch_size", "shuffle", "seed", "drop_last", "examples", "batches"))

_BATCH_SIZE = whole(1)._replace(
    fix="The data is one argument, such as a tuple: fl.Batches((x, y), 64)."
)


class Batches:
    """Batches of data, shuffled anew each epoch. A batch is a pure function of the cursor.

    There is no iteration state, so resuming needs only the cursor. The order of an epoch is a
    function of `seed` and the epoch (see `fl.data.permute`), independent of the batch size.

    Args:
        data: A tensor or numpy array; a tuple, dict or other pytree of them with a common leading
            dimension; or a map-style dataset (``__len__`` and ``__getitem__`` or ``__getitems__``),
            such as a list of examples. Batches of a pytree have its structure; arrays are converted
            to tensors without a copy where possible. Small shuffled batches of tensors are copied
            several at once, at most 256 KB: what is written to the data meanwhile is in the next
            batch, unless it is written through ``tensor.data`` or ``tensor.numpy()``, which torch
            does not count. Batches that are not shuffled are parts of the tensors, to which a step
            or a function that is evaluated must not write. Examples of a dataset are joined by
            torch's ``default_collate``. Random numbers that ``dataset[i]`` draws from torch's CPU
            generator, Python's ``random`` and numpy's global generator are a function of `seed`,
            the epoch and i, not of the order or `batch_size`. Those that ``__getitems__`` draws are
            a function of `seed`, the epoch and the batch.
        batch_size: Examples per batch; the last batch of an epoch may be smaller.
        shuffle: False keeps the order of the data.
        seed: Seed of the shuffle and of a dataset's random numbers, any integer.
        drop_last: Drop a last batch that is smaller than `batch_size`.
        collate: Joins a list of examples of a dataset to a batch, instead of ``default_collate``:
            `fl.data.pad`, or a function of yours. A list of tensors is then one of examples. Random
            numbers that it draws are a function of `seed`, the epoch and the batch.
        buckets: A whole number for each example. Examples with the same number, or with
            neighbouring ones, are put together: within stretches of 100 to 200 batches, in which
            the batches are shuffled. The order then depends on the batch size.
        weights: For each example a number of at least 0. The examples of an epoch are then drawn
            one by one, with replacement, each with a probability in proportion to its weight; an
            epoch has as many draws as there are examples. An example that comes several times is
            augmented anew each time.

    Attributes:
        examples: Number of examples.
        batches: Number of batches per epoch.

    What it was made with stays; `resized` gives the same data in batches of another size.

    Raises:
        TypeError: `data` is none of these, or `collate` is given for tensors.
        ValueError: There is no example, leading dimensions differ, `batch_size` is less than 1,
            `drop_last` leaves no batch, there are more or fewer `buckets` or `weights` than
            examples, or `weights` are given with `buckets` or without shuffle.

    >>> batches = Batches({"x": torch.arange(5.0)}, batch_size=2, shuffle=False)
    >>> len(batches), [batch["x"].tolist() for batch in batches]
    (3, [[0.0, 1.0], [2.0, 3.0], [4.0]])
    >>> cursor, batch = batches.at(torch.tensor([0, 4, 2]))
    >>> batch["x"].tolist(), cursor.tolist()
    ([4.0], [1, 0, 3])
    """

    batch_size: int
    batches: int | None  # part of the Source protocol

    @explained
    def __init__(
        self,
        data: Any,
        batch_size: Annotated[int, _BATCH_SIZE],
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
        buckets: Sequence[int] | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        batch_size = as_count(batch_size, "batch_size", 1)
        self.shuffle = shuffle
        self.seed = as_count(seed, "seed", least=None)
        self.drop_last = drop_last
        self._reader = reader(data, collate)
        self.examples = self._reader.examples
        if not self.examples:
            raise ValueError("The data is empty: it has 0 examples.")
        self._buckets = None if buckets is None else _checked(buckets, self.examples)
        self._weights = None if weights is None else checked_weights(weights, self.examples)
        if weights is not None and (buckets is not None or not shuffle):
            other = "buckets=" if buckets is not None else "shuffle=False"
            raise ValueError(
                f"fl.Batches draws examples at random by weights=, and {other} asks for another "
                "order. Leave out one of the two."
            )
        self._cut(batch_size)

    def _cut(self, batch_size: int) -> None:
        """Set the batch size, and what depends on it."""
        if self.drop_last and self.examples < batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: there are {self.examples} examples and "
                f"batch_size is {batch_size}. Make batch_size smaller, or keep the last batch."
            )
        vars(self)["batch_size"] = batch_size  # which `resized` sets anew
        self._length = (self.examples + (0 if self.drop_last else batch_size - 1)) // batch_size
        vars(self)["batches"] = self._length
        self._ahead = batch_size * max(1, min(_CUT, _AHEAD // batch_size))
        self._order = self._new_order()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and vars(self).get(name, value) != value:
            resized = "batches.resized(n), the same data in batches of n examples"
            other = resized if name == "batch_size" else "another fl.Batches"
            raise AttributeError(
                f"{name} of fl.Batches cannot be changed: a run that is under way would go on with "
                f"the old value. Take {other}, and go on with that in another call of fl.fit."
            )
        super().__setattr__(name, value)

    def resized(self, batch_size: int) -> Batches:
        """The same data in batches of another size.

        >>> [batch.tolist() for batch in Batches(torch.arange(3), 1, shuffle=False).resized(2)]
        [[0, 1], [2]]
        """
        same = copy.copy(self)
        same._cut(as_count(batch_size, "resized(batch_size)", 1))
        return same

    def __len__(self) -> int:
        return self._length

    def at(self, cursor: Tensor) -> tuple[Tensor, Any]:
        """Return the cursor of the next batch, and the batch that starts at `cursor`.

        Args:
            cursor: int64[3], ``(epoch, index, count)``; `index` counts examples.

        Raises:
            ValueError: The cursor's index is outside of the epoch.
        """
        after, batch = next(self._walk(Cursor.of(cursor), self._order, self.batch_size))
        return after.tensor(), batch

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """Yield, without end, pairs of the cursor after a batch and the batch.

        Args:
            cursor: Where to start.
            key: Not used; `seed` determines the order.
        """
        # Each iteration has its own cache of positions: two iterations would evict each other's.
        return self._walk(cursor, self._new_order(), self._ahead)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the first epoch."""
        for after, batch in self.iterate():
            yield batch
            if after.epoch:
                return

    def about(self) -> dict[str, Any]:
        """The fingerprint of the data, as JSON; it is saved with a checkpoint."""
        return {
            "kind": "Batches",
            "examples": self.examples,
            "batches": self.batches,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "index": "examples",
            "exact": "at once",
            **({} if self._buckets is None else {"buckets": sample_of_columns([self._buckets])}),
            **({} if self._weights is None else {"weights": sample_of_columns([self._weights])}),
            **self._reader.about(),
        }

    @property
    def lent(self) -> bool:
        """See `Source`."""
        return self._order is None and self._reader.lent

    @property
    def columns(self) -> dict[str, Tensor]:
        """The tensors of the data by path; none of a dataset, whose examples are read singly."""
        return getattr(self._reader, "leaves", {})

    def ordered(self) -> Batches:
        """See `Source`."""
        if self._buckets is not None:
            raise refusal("fl.Batches puts buckets together", "leave buckets= out")
        if self._weights is not None:
            raise refusal("fl.Batches draws examples by weight", "leave weights= out")
        check_order(self, self._reader)
        return self

    def numbers(self, cursor: Tensor) -> Tensor:
        """The numbers, in the data, of the examples in the batch at a cursor: int64[n]."""
        order = self._new_order()
        epoch, start = self._begin(Cursor.of(cursor))
        stop = min(start + self.batch_size, self.examples)
        if order is None:
            return torch.arange(start, stop, device="cpu")
        return order.at(epoch, start, stop)[0].cpu()

    def __repr__(self) -> str:
        return (
            f"Batches({self.examples} examples, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, seed={self.seed}, drop_last={self.drop_last})"
        )

    def _walk(
        self, cursor: Cursor, order: Order | None, ahead: int
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """As `iterate`; so many positions are cut into batches at once."""
        (epoch, index), count = self._begin(cursor), cursor.count
        size, examples, data = self.batch_size, self.examples, self._reader
        last = examples - size if self.drop_last else examples - 1  # last start of a batch
        epochs = data.epochs
        while True:
            seed = fold(self.seed, epoch) if data.random else 0
            end = min(index + ahead, examples)
            starts = range(index, end, size)
            if order is None:
                batches = (data.cut(slice(i, min(i + size, end)), seed) for i in starts)
            else:
                place = None if self._weights is None else index
                batches = data.several(order.at(epoch, index, end), size, seed, place)
            for _ in starts:
                if epochs is not None:
                    epochs.keep(epoch)
                batch = next(batches)
                count += 1
                index += size
                if index > last:
                    epoch, index = epoch + 1, 0
                yield Cursor(epoch, index, count), batch
                if not index:  # with drop_last, something may be left
                    break

    def _begin(self, cursor: Cursor) -> tuple[int, int]:
        """The epoch and the first example of the batch at a cursor."""
        epoch, index, _ = cursor
        if not 0 <= index < self.examples:
            raise ValueError(
                f"The cursor stands at example {index} of an epoch of {self.examples}. Usual "
                "cause: the run was started with other data. To begin this data anew: "
                "state.replace(cursor=fl.data.Cursor().tensor())."
            )
        # With drop_last, the rest of a run with a smaller batch size is left out.
        over = self.drop_last and index > self.examples - self.batch_size
        return (epoch + 1, 0) if over else (epoch, index)

    def _new_order(self) -> Order | None:
        devices = self._reader.devices
        if self._buckets is not None:
            return BucketOrder(self._buckets, self.batch_size, self.shuffle, self.seed, devices)
        if self._weights is not None:
            return WeightedOrder(self._weights, self.seed, devices)
        if not self.shuffle:
            return None
        ahead = self._ahead * max(1, _AHEAD // self._ahead)
        return ShuffledOrder(self.examples, self.seed, devices, ahead)


def _checked(buckets: Any, examples: int) -> Tensor:
    found = whole_numbers(buckets, "fl.Batches(buckets=...)", "the bucket of each example")
    if len(found) != examples:
        raise ValueError(
            f"buckets has {len(found)} numbers, and there are {examples} examples. Give each "
            "example its bucket, in the order of the data."
        )
    return found
