"""A ``DataLoader`` as a source of batches."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from fnloop._torch.workers import with_parts
from fnloop.data.fingerprint import name_of
from fnloop.data.generators import seeded_generators
from fnloop.data.iterables import Again, length, read
from fnloop.data.nested import Epochs, inexact, parts
from fnloop.data.order import check_order
from fnloop.data.readers import about_collate
from fnloop.data.reading_thread import started
from fnloop.data.seeding import draws
from fnloop.data.worker_parts import SeededDataset, SeededIndices, SeededStream, ShowDataset

# Persistent workers belong to the copy of a loader, so keep that copy as long as the loader lives.
_copies: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_reading: WeakSet[Any] = WeakSet()  # copies in the middle of an epoch


class Loader(Again):
    """A ``DataLoader`` whose order and examples are a function of the epoch's seed."""

    def __init__(self, loader: Any) -> None:
        super().__init__(lambda epoch: (), length(loader), "DataLoader")
        if self.batches == 0 and loader.drop_last and (examples := len(loader.sampler)):
            raise ValueError(
                f"drop_last=True leaves no batch: the DataLoader's sampler gives {examples} "
                f"examples, and its batch_size is {loader.batch_size}. Make batch_size smaller, or "
                "keep the last batch."
            )
        self._loader = loader
        self._samplers = samplers(loader)
        self._told = Epochs(*self._samplers, loader.dataset)
        self._used = _used(loader)
        stream = self._used.dataset
        self._stream = stream if isinstance(stream, SeededStream) else None
        self._indices: SeededIndices | None = None
        if isinstance(self._used.batch_sampler, SeededIndices):
            self._indices = self._used.batch_sampler
        elif isinstance(self._used.sampler, SeededIndices):
            self._indices = self._used.sampler
        # A subclass with its own __iter__ may not yield one batch per batch of indices.
        plain = type(loader).__iter__ is DataLoader.__iter__
        self._skips_indices = plain and self._indices is not None
        own = loader.batch_size is None or collates(loader)
        self.fresh = plain and bool(loader.num_workers or not own)

    def about(self) -> dict[str, Any]:
        """Its fingerprint."""
        return about_loader(self._loader) | {
            "kind": "DataLoader",
            "batches": self.batches,
            "index": "batches",
            **self._exact(),
            **inexact(self._loader.dataset),
        }

    def ordered(self) -> Loader:
        """See `Source`."""
        check_order(self._loader)
        same = copy.copy(self)
        same.watched = not is_map_style(self._loader)
        return same

    def _exact(self) -> dict[str, Any]:
        loader = self._loader
        if loader.num_workers and not loader.in_order:
            return _no("in_order=False: which batch comes next depends on the workers' speed")
        if self._indices is not None:
            return {"exact": "at once" if self._skips_indices else "by skipping"}
        if loader.num_workers and loader.persistent_workers and self._stream is None:
            return _no("workers that persist do not restart a data pipe with seeds of the epoch")
        return {"exact": "by skipping"}

    def _read(self, epoch: int, index: int, seed: int) -> Generator[Any, None, None]:
        self._told.begin(epoch)
        if self._stream is not None:
            self._stream.shared.copy_(torch.tensor([seed, epoch, self.watched]))
        if self._indices is not None:
            self._indices.seed, self._indices.epoch = seed, epoch
            self._indices.skip = index if self._skips_indices else 0
        skipped = 0 if self._skips_indices else index
        with seeded_generators([self._used, *self._samplers], seed), _marked(self._used):
            if self._used.num_workers or _draws_nothing(self._loader):
                for number, batch in enumerate(started(lambda: iter(self._used))):
                    if number >= skipped:
                        yield batch
            else:
                yield from read(lambda: self._used, skipped, seed, self.watched)


def is_map_style(loader: Any) -> bool:
    """Whether the loader's dataset is indexed, not iterated."""
    return not isinstance(loader.dataset, (IterableDataset, MapDataPipe))


def samplers(loader: Any) -> list[Any]:
    """The loader's sampler, its batch sampler, and the samplers that these wrap."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = parts(loader.sampler, batch_sampler)
    data = {id(part) for part in parts(loader.dataset)}  # which samplers may refer to
    return [part for part in found if id(part) not in data]


def about_loader(loader: Any) -> dict[str, Any]:
    """The part of the fingerprint that all torch loaders share."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    ask: Any = getattr(loader.batch_sampler, "about", None)
    return {
        "dataset": name_of(loader.dataset),
        "examples": length(loader.dataset),
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "shuffle": isinstance(sampler, (RandomSampler, SubsetRandomSampler)),
        "sampler": name_of(sampler),
        "num_workers": loader.num_workers,
        **({} if ask is None else ask()),
        **({"collate": about_collate(loader.collate_fn)} if collates(loader) else {}),
    }


def collates(loader: Any) -> bool:
    """Whether the loader's ``collate_fn`` may draw random numbers."""
    return loader.collate_fn not in (default_collate, default_convert)


@contextmanager
def _marked(loader: Any) -> Generator[None]:
    """A context manager in which the copy counts as being read."""
    _reading.add(loader)
    try:
        yield
    finally:
        _reading.discard(loader)


def _used(loader: Any) -> Any:
    """A copy of the loader that seeds what it reads, if it is one that can be seeded."""
    kept = _copies.get(loader) if loader.persistent_workers else None
    if kept is not None and kept not in _reading:
        return kept
    if kept is not None:  # read by training, whose epoch would begin anew: take workers of our own
        loader = with_parts(loader, persistent_workers=False)
    if is_map_style(loader):
        copied = _seeded(loader)
    elif loader.num_workers and not isinstance(loader.dataset, IterDataPipe | MapDataPipe):
        copied = with_parts(
            loader,
            dataset=SeededStream(loader.dataset),
            worker_init_fn=ShowDataset(loader.worker_init_fn),
        )
    else:
        return loader
    if loader.persistent_workers:
        _copies[loader] = copied
    return copied


def _seeded(loader: Any) -> Any:
    """A copy of the loader that reseeds the generators for each example."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    replaced = {
        "dataset": SeededDataset(loader.dataset, collates(loader)),
        name: SeededIndices(
            getattr(loader, name),
            batches=loader.batch_sampler is not None,
            repeats=not all(_gives_each_once(part) for part in samplers(loader)),
            draws=not all(_is_known(part) for part in samplers(loader)),
        ),
        "worker_init_fn": ShowDataset(loader.worker_init_fn),
    }
    return with_parts(loader, **replaced)


def _draws_nothing(loader: Any) -> bool:
    """Whether the loader cannot draw from global generators of the process."""
    return (
        type(loader) is DataLoader
        and is_map_style(loader)
        and not draws(loader.dataset)
        and not collates(loader)
        and all(_is_known(part) for part in samplers(loader))
    )


def _is_known(sampler: Any) -> bool:
    return type(sampler) in (list, tuple, range) or type(sampler).__module__.startswith(
        "torch.utils.data."
    )


def _gives_each_once(sampler: Any) -> bool:
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples <= len(sampler.data_source)
    return type(sampler) in (SequentialSampler, BatchSampler, DistributedSampler)


def _no(reason: str) -> dict[str, Any]:
    return {"exact": "no", "reason": reason}
