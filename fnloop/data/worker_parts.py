"""The parts of a ``DataLoader`` that make an example's random numbers independent of workers.

The sampler hands on its indices together with the seed of the epoch, and the dataset, in whichever
process it is, starts the generators from these before it takes each example.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

from fnloop._torch.workers import show_dataset
from fnloop.data.seeding import Examples, seeding
from fnloop.values.key import fold

_END = object()


class Asked(NamedTuple):
    """What the sampler asks of the dataset: the examples of a batch, or one.

    Attributes:
        seed: Of the epoch.
        place: Of the first one in the epoch.
        times: How often each was drawn before in this epoch; empty if none was.
        indices: A sequence of indices, or one where the loader makes no batches.
    """

    seed: int
    place: int
    times: tuple[int, ...]
    indices: Any


class SeededIndices:
    """A sampler, or batch sampler, whose indices go to a `SeededDataset`.

    Args:
        sampler: That of the user.
        batches: Whether it gives batches of indices.
        repeats: Whether it may give an example twice in an epoch.
        draws: Whether it may draw from the process's generators.

    Attributes:
        seed: Of the next epoch to be iterated.
        skip: Batches of it to leave out.
    """

    def __init__(self, sampler: Any, batches: bool, repeats: bool, draws: bool) -> None:
        self.sampler = sampler
        self.seed = self.skip = 0
        self._batches, self._repeats, self._draws = batches, repeats, draws

    def __iter__(self) -> Generator[Asked, None, None]:
        return self._walk(self.seed, self.skip)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _walk(self, seed: int, skip: int) -> Generator[Asked, None, None]:
        with self._seeding(seed):
            items = iter(self.sampler)
        place, seen = 0, Counter[int | str]()
        for number in itertools.count():
            with self._seeding(fold(seed, number)):
                item: Any = next(items, _END)
            if item is _END:
                return
            # A batch may be an iterator, and is read more than once.
            given = item if not self._batches or hasattr(item, "__getitem__") else list(item)
            indices: Any = given if self._batches else (given,)
            times = self._count(indices, seen) if self._repeats else ()
            if number >= skip:
                yield Asked(seed, place, times, given)
            place += len(indices)

    def _seeding(self, seed: int) -> Any:
        return seeding(seed) if self._draws else nullcontext()

    @staticmethod
    def _count(indices: Sequence[Any], seen: Counter[int | str]) -> tuple[int, ...]:
        times: list[int] = []
        for index in indices:
            known = index if type(index) is int else repr(index)
            times.append(seen[known])
            seen[known] += 1
        return tuple(times) if any(times) else ()


class SeededDataset:
    """A map-style dataset that starts the generators anew for each example it is asked for.

    Args:
        dataset: That of the user.
        collates: Whether what comes after it, the ``collate_fn``, may draw random numbers.
        seed: int64[] in shared memory: the seed of the epoch, where plain indices come.
    """

    def __init__(self, dataset: Any, collates: bool, seed: torch.Tensor | None = None) -> None:
        self.dataset = dataset
        self.seed = seed
        self._collates = collates
        self._examples = Examples(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, asked: Any) -> list[Any]:
        """The examples of a batch."""
        if not isinstance(asked, Asked):
            if self.seed is None:
                return [self.dataset[index] for index in asked]
            asked = Asked(int(self.seed), 0, (), asked)
        seed, place, times, indices = asked
        if not len(indices):
            return []
        examples = self._examples.take(indices, seed, times, place)
        if self._collates:
            self._examples.before_collation(indices, seed, times, place)
        return examples

    def __getitem__(self, asked: Any) -> Any:
        """One example, of a loader that makes no batches."""
        if not isinstance(asked, Asked):
            if self.seed is None:
                return self.dataset[asked]
            asked = Asked(int(self.seed), 0, (), asked)
        times = asked.times[0] if asked.times else 0
        return self._examples.one(asked.indices, asked.seed, times, asked.place)


class ShowDataset:
    """A ``worker_init_fn`` that calls the user's, with the user's dataset in the worker's info."""

    def __init__(self, init: Any) -> None:
        self._init = init

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        if info is not None and isinstance(info.dataset, SeededDataset):
            show_dataset(info.dataset.dataset)
        if self._init is not None:
            self._init(worker)
