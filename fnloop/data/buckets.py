"""Orders of an epoch in which examples of one bucket, such as one length, are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.data.fingerprint import name_of, sample_of_columns
from fnloop.data.permutation import permute
from fnloop.data.whole import whole_numbers
from fnloop.names.keywords import explained
from fnloop.values.counts import as_count
from fnloop.values.key import fold

_STRETCH = 100  # batches at least, if there are as many


class BucketOrder:
    """The order of an epoch, computed in stretches, of which the last is kept.

    Within a stretch of the shuffled epoch examples are sorted by bucket, cut into batches, and the
    batches shuffled. Examples of one bucket keep their shuffled order.

    Args:
        buckets: int64[n] on the CPU: the bucket of each example.
        batch_size: Examples per batch.
        shuffle: False takes examples in their order, and stretches in that of the buckets.
        seed: Seed of the shuffle.
        devices: Where the order is wanted.
    """

    def __init__(
        self,
        buckets: Tensor,
        batch_size: int,
        shuffle: bool,
        seed: int,
        devices: Sequence[torch.device] = (torch.device("cpu"),),
    ) -> None:
        self._buckets, self._size, self._shuffle, self._seed = buckets, batch_size, shuffle, seed
        self._devices = devices
        self._batches = -(-len(buckets) // batch_size)
        self._stretches = max(1, self._batches // _STRETCH)
        self._known: tuple[tuple[int, int], Tensor] = ((-1, -1), buckets[:0])

    def at(self, epoch: int, start: int, stop: int) -> list[Tensor]:
        """The examples at positions `start` to `stop` of an epoch: int64[n] for each device."""
        found: list[Tensor] = []
        while start < stop:
            number = self._stretch_of(start)
            first, last = self._bounds(number)
            end = min(stop, last)
            found.append(self._stretch(epoch, number)[start - first : end - first])
            start = end
        examples = torch.cat(found)
        return [examples.to(device) for device in self._devices]

    def _stretch_of(self, position: int) -> int:
        """The number of the stretch that a position is in, the inverse of `_bounds`."""
        return ((position // self._size + 1) * self._stretches - 1) // self._batches

    def _bounds(self, number: int) -> tuple[int, int]:
        first, last = (k * self._batches // self._stretches for k in (number, number + 1))
        return first * self._size, min(last * self._size, len(self._buckets))

    def _stretch(self, epoch: int, number: int) -> Tensor:
        known = self._known  # read once and assigned once, as threads may share it
        if known[0] != (epoch, number):
            self._known = known = (epoch, number), self._compute(epoch, number)
        return known[1]

    def _compute(self, epoch: int, number: int) -> Tensor:
        examples = torch.arange(*self._bounds(number), device="cpu")
        if self._shuffle:
            examples = permute(examples, len(self._buckets), self._seed, epoch)
        examples = examples[self._buckets[examples].argsort(stable=True)]
        full, rest = divmod(len(examples), self._size)
        if not self._shuffle or not full:
            return examples
        # The smaller batch comes last, but may be of any bucket: dropping it favours none.
        seed = fold(self._seed, "buckets", number)
        place = fold(seed, epoch) % (full + 1) * self._size
        smaller = examples[place : place + rest]
        others = torch.cat([examples[:place], examples[place + rest :]]).view(full, self._size)
        order = permute(torch.arange(full, device="cpu"), full, seed, epoch)
        return torch.cat([others[order].flatten(), smaller])


class BucketSampler:
    """Batches of indices for a ``DataLoader``, each of examples of one bucket or of neighbours.

    The order is that of ``fl.Batches(..., buckets=...)``: a function of `seed` and the epoch, which
    ``set_epoch`` tells (`fl.run` and `fl.fit` call it).

    Args:
        buckets: A whole number for each example, such as ``pad.buckets(lengths)``.
        batch_size: Examples per batch; the last batch of an epoch may be smaller.
        shuffle: False gives the same order each epoch, that of the buckets.
        seed: Seed of the shuffle, any integer.
        drop_last: Drop a last batch that is smaller than `batch_size`.

    Raises:
        TypeError: An argument is of another type.
        ValueError: There is no example, or no batch, or `batch_size` is below 1.

    >>> sampler = BucketSampler([40, 70, 40, 70, 40], batch_size=2, shuffle=False)
    >>> len(sampler), list(sampler)
    (3, [[0, 2], [4, 1], [3]])
    """

    @explained
    def __init__(
        self,
        buckets: Sequence[int] | Tensor,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        found = whole_numbers(buckets, "BucketSampler(buckets)", "the bucket of each example")
        self._size, self._drop_last = as_count(batch_size, "batch_size", 1), drop_last
        self.epoch = 0
        self._examples = len(found)
        if not len(self):
            raise ValueError(
                f"There is no batch: {self._examples} examples, batch_size={batch_size}, "
                f"drop_last={drop_last}."
            )
        self._buckets, self._shuffle = found, shuffle
        self._seed = as_count(seed, "seed", least=None)
        self._order = BucketOrder(found, self._size, shuffle, self._seed)

    @property
    def batch_size(self) -> int:
        """Examples per batch."""
        return self._size

    @property
    def drop_last(self) -> bool:
        """Whether a last batch that is smaller is dropped."""
        return self._drop_last

    def __len__(self) -> int:
        size = self.batch_size
        return (self._examples + (0 if self.drop_last else size - 1)) // size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            stop = min(start + self.batch_size, self._examples)
            yield self._order.at(epoch, start, stop)[0].tolist()

    def about(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON."""
        return {
            "sampler": name_of(self),
            "batch_size": self.batch_size,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "drop_last": self.drop_last,
            "buckets": sample_of_columns([self._buckets]),
        }

    def __repr__(self) -> str:
        return f"BucketSampler({self._examples} examples, batch_size={self.batch_size})"
