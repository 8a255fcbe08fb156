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

# Workers that persist belong to a copy of the loader, and stay as long as the loader does.
_copies: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Loader(Again):
    """A ``DataLoader``: order and examples are made a function of the epoch's seed."""

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
        # A subclass that iterates in its own way may not give a batch for each of the sampler's.
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
                "workers that persist are not seeded anew with each epoch, and an iterable dataset "
                "draws from their generators; persistent_workers=False makes it exact"
            )
        return {"exact": "by skipping"}

    def _read(self, epoch: int, index: int, seed: int) -> Generator[Any, None, None]:
        announce([*self._samplers, self._loader.dataset], epoch)
        if self._indices is not None:
            self._indices.seed = seed
            self._indices.skip = index if self._skips_indices else 0
        skipped = 0 if self._skips_indices else index
        with lent([self._used, *self._samplers], seed):
            if self._used.num_workers or _draws_nothing(self._loader):
                for number, batch in enumerate(self._used):
                    if number >= skipped:
                        yield batch
            else:
                yield from read(lambda: self._used, skipped, seed)


def is_map_style(loader: Any) -> bool:
    """Whether its dataset is asked for examples by index."""
    return not isinstance(loader.dataset, (IterableDataset, MapDataPipe))


def samplers(loader: Any) -> list[Any]:
    """Its sampler, its batch sampler and the sampler of that."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
    return list({id(part): part for part in found if part is not None}.values())


def announce(parts: Sequence[Any], epoch: int) -> None:
    """Tell samplers and datasets the epoch, as far as they listen."""
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


@contextlib.contextmanager
def lent(parts: Sequence[Any], seed: int) -> Generator[None, None, None]:
    """Give the parts of a loader that have none a generator; start all from `seed`; undo it.

    Without a generator, a sampler takes its seed from the global one, after a draw for new workers
    or without one where they persist. What worker processes draw follows from the loader's.
    """
    kinds = (torch.Generator, type(None))
    owners = [part for part in parts if isinstance(getattr(part, "generator", 0), kinds)]
    borrowers = [part for part in owners if part.generator is None]
    own = {id(part.generator): part.generator for part in owners if part.generator is not None}
    before = [(generator, generator.get_state()) for generator in own.values()]
    try:
        for owner in owners:
            if owner.generator is None:
                owner.generator = torch.Generator()
            owner.generator.manual_seed(seed)
        yield
    finally:
        for part in borrowers:
            part.generator = None
        for generator, state in before:
            generator.set_state(state)


def about_loader(loader: Any) -> dict[str, Any]:
    """What is the same of all loaders of torch."""
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
    """Whether its ``collate_fn`` may draw random numbers."""
    return loader.collate_fn not in (default_collate, default_convert)


def _seeded(loader: Any) -> Any:
    """A copy whose examples draw from generators of their own."""
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
    """Whether it can draw from no generator of the process but those it is lent."""
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
