"""A ``DataLoader`` as a source of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from fnloop._torch.workers import with_parts
from fnloop.data.fingerprint import name_of
from fnloop.data.iterables import Again, length, read
from fnloop.data.seeding import draws
from fnloop.data.worker_parts import SeededDataset, SeededIndices, ShowDataset

# Persistent workers belong to the copy of a loader, so keep that copy as long as the loader lives.
_copies: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Loader(Again):
    """A ``DataLoader`` whose order and examples are a function of the epoch's seed."""

    def __init__(self, loader: Any) -> None:
        super().__init__(lambda epoch: (), length(loader), "DataLoader")
        self._loader = loader
        self._samplers = samplers(loader)
        self._used = _seeded(loader) if is_map_style(loader) else loader
        self._indices: SeededIndices | None = None
        if isinstance(self._used.batch_sampler, SeededIndices):
            self._indices = self._used.batch_sampler
        elif isinstance(self._used.sampler, SeededIndices):
            self._indices = self._used.sampler
        # A subclass with its own __iter__ may not yield one batch per batch of indices.
        plain = type(loader).__iter__ is DataLoader.__iter__
        self._skips_indices = plain and self._indices is not None

    def about(self) -> dict[str, Any]:
        """Its fingerprint."""
        return about_loader(self._loader) | {
            "kind": "DataLoader",
            "batches": self.batches,
            "index": "batches",
            **self._exact(),
        }

    def _exact(self) -> dict[str, Any]:
        loader = self._loader
        if loader.num_workers and not loader.in_order:
            return _no("in_order=False: which batch comes next depends on the workers' speed")
        if self._indices is not None:
            return {"exact": "at once" if self._skips_indices else "by skipping"}
        if loader.num_workers and loader.persistent_workers:
            return _no(
                "persistent workers are not reseeded each epoch, and an iterable dataset draws "
                "from their generators; persistent_workers=False makes it exact"
            )
        return {"exact": "by skipping"}

    def _read(self, epoch: int, index: int, seed: int) -> Generator[Any, None, None]:
        set_epochs([*self._samplers, self._loader.dataset], epoch)
        if self._indices is not None:
            self._indices.seed = seed
            self._indices.skip = index if self._skips_indices else 0
        skipped = 0 if self._skips_indices else index
        with seeded_generators([self._used, *self._samplers], seed):
            if self._used.num_workers or _draws_nothing(self._loader):
                for number, batch in enumerate(self._used):
                    if number >= skipped:
                        yield batch
            else:
                yield from read(lambda: self._used, skipped, seed)


def is_map_style(loader: Any) -> bool:
    """Whether the loader's dataset is indexed, not iterated."""
    return not isinstance(loader.dataset, (IterableDataset, MapDataPipe))


def samplers(loader: Any) -> list[Any]:
    """The loader's sampler, its batch sampler, and the batch sampler's sampler."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
    return list({id(part): part for part in found if part is not None}.values())


def set_epochs(parts: Sequence[Any], epoch: int) -> None:
    """Call ``set_epoch`` on samplers and datasets that have it."""
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


@contextlib.contextmanager
def seeded_generators(parts: Sequence[Any], seed: int) -> Generator[None, None, None]:
    """Within the block, each part of a loader has a generator seeded with `seed`.

    Parts without a generator get one for the duration of the block; others get their state back. A
    sampler without a generator would seed itself from the global one, whose state depends on
    whether new workers are started. Workers are seeded from the loader's generator.
    """
    kinds = (torch.Generator, type(None))
    owners = [part for part in parts if isinstance(getattr(part, "generator", 0), kinds)]
    without = [part for part in owners if part.generator is None]
    own = {id(part.generator): part.generator for part in owners if part.generator is not None}
    before = [(generator, generator.get_state()) for generator in own.values()]
    try:
        for owner in owners:
            if owner.generator is None:
                owner.generator = torch.Generator()
            owner.generator.manual_seed(seed)
        yield
    finally:
        for part in without:
            part.generator = None
        for generator, state in before:
            generator.set_state(state)


def about_loader(loader: Any) -> dict[str, Any]:
    """The part of the fingerprint that all torch loaders share."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return {
        "dataset": name_of(loader.dataset),
        "examples": length(loader.dataset),
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "shuffle": isinstance(sampler, (RandomSampler, SubsetRandomSampler)),
        "sampler": name_of(sampler),
        "num_workers": loader.num_workers,
    }


def collates(loader: Any) -> bool:
    """Whether the loader's ``collate_fn`` may draw random numbers."""
    return loader.collate_fn not in (default_collate, default_convert)


def _seeded(loader: Any) -> Any:
    """A copy of the loader that reseeds the generators for each example."""
    if loader.persistent_workers and loader in _copies:
        return _copies[loader]
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    parts = {
        "dataset": SeededDataset(loader.dataset, collates(loader)),
        name: SeededIndices(
            getattr(loader, name),
            batches=loader.batch_sampler is not None,
            repeats=not all(_gives_each_once(part) for part in samplers(loader)),
            draws=not all(_is_known(part) for part in samplers(loader)),
        ),
        "worker_init_fn": ShowDataset(loader.worker_init_fn),
    }
    copied = with_parts(loader, **parts)
    if loader.persistent_workers:
        _copies[loader] = copied
    return copied


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
