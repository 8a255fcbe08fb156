"""Whether data is read in its own order, as ``predict`` needs it."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fnloop.data.fingerprint import name_of
from fnloop.data.generators import seeded_generators
from fnloop.data.nested import parts
from fnloop.data.seeding import drawn, seeding

_END = object()
_IN_ORDER = (SequentialSampler, DistributedSampler, list, tuple, range)  # or the user's own order
_AT_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def check_order(*data: Any) -> None:
    """Check that nothing in `data` is known to shuffle.

    Raises:
        ValueError: Something does: an attribute ``shuffle=True``, a loader whose sampler is not in
            order, or a stage that shuffles a stream.
    """
    for part in parts(*data):
        if getattr(part, "shuffle", False) is True:
            remedy = "set shuffle=False"
            if name_of(part).startswith("fnloop."):
                remedy = "use fl.Batches(..., shuffle=False)"
            raise refusal(f"{_name(part)} shuffles (shuffle=True)", remedy)
        if isinstance(part, DataLoader):
            _check_loader(part)
        elif _shuffles_a_stream(part):
            raise refusal(f"{_name(part)} shuffles the stream", "leave it out")


def watch(items: Iterable[Any], seed: int) -> Generator[Any, None, None]:
    """Yield the items of a stream, whose generators have just been seeded with `seed`.

    Raises:
        ValueError: The stream draws random numbers.
    """
    iterator = iter(items)
    while True:
        check_drawn(seed, items)
        item = next(iterator, _END)
        check_drawn(seed, items)
        if item is _END:
            return
        yield item


def check_drawn(seed: int, data: Any) -> None:
    """Check that no random number was drawn since the generators were seeded with `seed`.

    Raises:
        ValueError: One was. A stream that draws may shuffle, and nobody can see that from outside.
    """
    if drawn(seed):
        raise refusal(
            f"{_name(data)} draws random numbers while it is read, as a shuffle does",
            "turn off its shuffle, or its augmentation; or read its examples by number, with "
            "fl.Batches(dataset, batch_size, shuffle=False)",
        )


def _check_loader(loader: Any) -> None:
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if loader.num_workers and not loader.in_order:
        raise refusal(
            "this DataLoader gives batches as its workers finish (in_order=False)",
            "set in_order=True",
        )
    if isinstance(loader.dataset, IterableDataset):
        return
    if isinstance(sampler, _AT_RANDOM) or getattr(sampler, "shuffle", False) is True:
        raise refusal(
            f"this DataLoader shuffles: its sampler is {_name(sampler)}",
            "use DataLoader(..., shuffle=False), without a sampler",
        )
    if type(sampler) not in _IN_ORDER and isinstance(loader.dataset, Sized):
        _check_sampler(sampler, loader.dataset)


def _check_sampler(sampler: Any, dataset: Sized) -> None:
    """Draw the indices of a user's sampler, and see whether they ascend."""
    last = -1
    with seeding(0), seeded_generators(parts(sampler), 0):
        for index in islice(_indices(sampler), len(dataset) + 1):
            if not isinstance(index, int) or index < last:
                raise refusal(
                    f"the {_name(sampler)} of this DataLoader gives {index!r} after {last}, which "
                    "is not the order of the dataset",
                    "use DataLoader(..., shuffle=False) without it; or, if its order is the one "
                    "you want, pass it as a list: sampler=list(...), batch_sampler=list(...)",
                )
            last = index


def _indices(sampler: Any) -> Iterator[Any]:
    for item in sampler:
        try:
            yield operator.index(item)  # also numpy's integers and tensors of one element
        except TypeError:
            yield from _indices(item) if not isinstance(item, str | bytes) else [item]


def _shuffles_a_stream(part: Any) -> bool:
    """Whether it is a stage that shuffles, of torch's data pipes or of Hugging Face's datasets."""
    kind = type(part)
    known = kind.__module__.startswith(("torch.utils.data.datapipes", "torchdata.", "datasets."))
    return known and "Shuffl" in kind.__name__ and getattr(part, "_enabled", True)


def _name(thing: Any) -> str:
    name = getattr(thing, "__name__", None)
    return name if isinstance(name, str) else type(thing).__name__


def refusal(why: str, remedy: str) -> ValueError:
    """The error for data that is not in its own order."""
    return ValueError(
        f"predict gives outputs in the order of the data, but {why}. To predict: {remedy}."
    )
