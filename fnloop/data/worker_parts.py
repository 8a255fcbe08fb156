"""Parts of a ``DataLoader`` that make an example's random numbers independent of workers.

The sampler passes its indices on together with the seed of the epoch. The dataset, in whichever
process, seeds the generators from both before it reads each example.
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


class Request(NamedTuple):
    """The sampler's request to the dataset: the examples of a batch, or one example.

    Attributes:
        seed: Seed of the epoch.
        place: Position of the first example in the epoch.
        times: How often each index was drawn before in this epoch; empty if none was.
        indices: A sequence of indices, or one index if the loader does not batch.
    """

    seed: int
    place: int
    times: tuple[int, ...]
    indices: Any


class SeededIndices:
    """Wraps a sampler or batch sampler, whose indices go to a `SeededDataset`.

    Args:
        sampler: The user's sampler.
        batches: Whether it yields batches of indices.
        repeats: Whether it may yield an index twice in an epoch.
        draws: Whether it may draw from global generators.

    Attributes:
        seed: Seed of the next epoch to be iterated.
        skip: Number of its items to skip.
    """

    def __init__(self, sampler: Any, batches: bool, repeats: bool, draws: bool) -> None:
        self.sampler = sampler
        self.seed = self.skip = 0
        self._batches, self._repeats, self._draws = batches, repeats, draws

    def __iter__(self) -> Generator[Request, None, None]:
        return self._walk(self.seed, self.skip)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _walk(self, seed: int, skip: int) -> Generator[Request, None, None]:
        with self._seeding(seed):
            items = iter(self.sampler)
        place, seen = 0, Counter[int | str]()
        for number in itertools.count():
            with self._seeding(fold(seed, number)):
                item: Any = next(items, _END)
            if item is _END:
                return
            # A batch may be an iterator, but is read more than once here.
            given = item if not self._batches or hasattr(item, "__getitem__") else list(item)
            indices: Any = given if self._batches else (given,)
            times = self._count(indices, seen) if self._repeats else ()
            if number >= skip:
                yield Request(seed, place, times, given)
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
    """Wraps a map-style dataset, and seeds the generators before each example.

    Args:
        dataset: The user's dataset.
        collates: Whether the loader's ``collate_fn`` may draw random numbers.
        seed: int64[] in shared memory; the epoch's seed, for indices without one.
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

    def __getitems__(self, request: Any) -> list[Any]:
        """The examples of a batch."""
        if not isinstance(request, Request):
            if self.seed is None:
                return [self.dataset[index] for index in request]
            request = Request(int(self.seed), 0, (), request)
        seed, place, times, indices = request
        if not len(indices):
            return []
        examples = self._examples.take(indices, seed, times, place)
        if self._collates:
            self._examples.before_collation(indices, seed, times, place)
        return examples

    def __getitem__(self, request: Any) -> Any:
        """One example, for a loader that does not batch."""
        if not isinstance(request, Request):
            if self.seed is None:
                return self.dataset[request]
            request = Request(int(self.seed), 0, (), request)
        times = request.times[0] if request.times else 0
        return self._examples.one(request.indices, request.seed, times, request.place)


class ShowDataset:
    """A ``worker_init_fn`` that puts the user's dataset in the worker info and calls the user's."""

    def __init__(self, init: Any) -> None:
        self._init = init

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        if info is not None and isinstance(info.dataset, SeededDataset):
            show_dataset(info.dataset.dataset)
        if self._init is not None:
            self._init(worker)
