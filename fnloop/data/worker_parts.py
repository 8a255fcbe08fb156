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
from torch.utils.data import IterableDataset, get_worker_info

from fnloop._torch.workers import show_dataset
from fnloop.data.nested import Epochs
from fnloop.data.order import watch
from fnloop.data.seeding import Examples, reseed, seeding
from fnloop.values.key import fold

_END = object()


class Request(NamedTuple):
    """The sampler's request to the dataset: the examples of a batch, or one example.

    Attributes:
        seed: Seed of the epoch.
        place: Position of the first example in the epoch.
        times: How often each index was drawn before in this epoch; empty if none was.
        indices: A sequence of indices, or one index if the loader does not batch.
        epoch: The epoch, which workers that persist are told so.
    """

    seed: int
    place: int
    times: tuple[int, ...]
    indices: Any
    epoch: int = 0


class SeededIndices:
    """Wraps a sampler or batch sampler, whose indices go to a `SeededDataset`.

    Args:
        sampler: The user's sampler.
        batches: Whether it yields batches of indices.
        repeats: Whether it may yield an index twice in an epoch.
        draws: Whether it may draw from global generators.

    Attributes:
        seed, epoch: Seed and number of the next epoch to be iterated.
        skip: Number of its items to skip.
    """

    def __init__(self, sampler: Any, batches: bool, repeats: bool, draws: bool) -> None:
        self.sampler = sampler
        self.seed = self.epoch = self.skip = 0
        self._batches, self._repeats, self._draws = batches, repeats, draws

    def __iter__(self) -> Generator[Request, None, None]:
        return self._walk(self.seed, self.skip, self.epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _walk(self, seed: int, skip: int, epoch: int) -> Generator[Request, None, None]:
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
                yield Request(seed, place, times, given, epoch)
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


class _OfDataset:
    """A wrapper that has the length and the attributes of the user's dataset."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededDataset(_OfDataset):
    """Wraps a map-style dataset, and seeds the generators before each example.

    Args:
        dataset: The user's dataset.
        collates: Whether the loader's ``collate_fn`` may draw random numbers.
        shared: int64[2] in shared memory: seed and number of the epoch, for indices without them.
    """

    def __init__(self, dataset: Any, collates: bool, shared: torch.Tensor | None = None) -> None:
        self.dataset = dataset
        self.shared = shared
        self._collates = collates
        self._examples = Examples(dataset)
        self._epochs = Epochs(dataset)

    def __getitems__(self, request: Any) -> list[Any]:
        """The examples of a batch."""
        if not isinstance(request, Request):
            if self.shared is None:
                return [self.dataset[index] for index in request]
            request = self._request(request)
        seed, place, times, indices, epoch = request
        self._epochs.keep(epoch)
        if not len(indices):
            return []
        examples = self._examples.take(indices, seed, times, place)
        if self._collates:
            self._examples.before_collation(indices, seed, times, place)
        return examples

    def __getitem__(self, request: Any) -> Any:
        """One example, for a loader that does not batch."""
        if not isinstance(request, Request):
            if self.shared is None:
                return self.dataset[request]
            request = self._request(request)
        self._epochs.keep(request.epoch)
        times = request.times[0] if request.times else 0
        return self._examples.one(request.indices, request.seed, times, request.place)

    def _request(self, indices: Any) -> Request:
        seed, epoch = self.shared.tolist()  # type: ignore[union-attr]
        return Request(seed, 0, (), indices, epoch)


class SeededStream(_OfDataset, IterableDataset[Any]):
    """Wraps an iterable dataset that workers read: each epoch begins with its number and seeds.

    Without it, workers that persist would go on with the seeds and the epoch that they began with.

    Args:
        dataset: The user's dataset.

    Attributes:
        shared: int64[3] in shared memory: seed and number of the epoch, and whether to `watch`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.shared = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._epochs = Epochs(dataset)

    def __iter__(self) -> Any:
        seed, epoch, watched = self.shared.tolist()
        info: Any = get_worker_info()
        seed = fold(seed, "worker", info.id)
        self._epochs.begin(epoch)
        reseed(seed)
        return watch(self.dataset, seed) if watched else iter(self.dataset)


class ShowDataset:
    """A ``worker_init_fn`` that puts the user's dataset in the worker info and calls the user's."""

    def __init__(self, init: Any) -> None:
        self._init = init

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        if info is not None and isinstance(info.dataset, SeededDataset | SeededStream):
            show_dataset(info.dataset.dataset)
        if self._init is not None:
            self._init(worker)
