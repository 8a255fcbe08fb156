"""Parts of data inside of others: the epoch reaches them, their generators are seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    StackDataset,
    Subset,
    TensorDataset,
)

import fnloop as fl
from fnloop.data.nested import parts
from fnloop.data.sources import as_source, one_epoch
from fnloop.values.cursor import Cursor


class Curriculum(Dataset[int]):
    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        return 100 * self.epoch + i


class CurriculumStream(IterableDataset[int]):
    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        yield from (100 * self.epoch + i for i in range(4))


class Around:
    """A wrapper that is no subclass of anything."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        return self.inner[i]


class AroundStream(IterableDataset[Any]):
    def __init__(self, inner: Any) -> None:
        self.inner = {"train": [inner]}

    def __iter__(self) -> Any:
        return iter(self.inner["train"][0])


class Order(Sampler[int]):
    """A sampler that turns the order by the epoch."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter([(self.epoch + i) % 4 + 100 * self.epoch for i in range(4)])

    def __len__(self) -> int:
        return 4


class AroundSampler(Order):
    set_epoch = None

    def __init__(self, inner: Order) -> None:
        self.inner = inner

    def __iter__(self) -> Any:
        return iter(self.inner)


class Any_(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        return i


class Stateful(DataLoader[Any]):
    """A loader with a state of its own, as torchdata's."""

    position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


WORKERS: dict[str, Any] = {
    "no worker": {},
    "workers": {"num_workers": 1},
    "persistent workers": {"num_workers": 1, "persistent_workers": True},
}
DATA: dict[str, Callable[[Any], Any]] = {
    "dataset": lambda kw: DataLoader(Curriculum(), 2, **kw),
    "without batches": lambda kw: DataLoader(Curriculum(), None, **kw),
    "subset": lambda kw: DataLoader(Subset(Curriculum(), range(4)), 2, **kw),
    "concat": lambda kw: DataLoader(ConcatDataset([Curriculum(), Curriculum()]), 2, **kw),
    "stack": lambda kw: DataLoader(StackDataset(Curriculum(), Curriculum()), 2, **kw),
    "wrapper": lambda kw: DataLoader(Around(Around(Curriculum())), 2, **kw),
    "stream": lambda kw: DataLoader(CurriculumStream(), 2, **kw),
    "wrapped stream": lambda kw: DataLoader(AroundStream(CurriculumStream()), 2, **kw),
    "sampler": lambda kw: DataLoader(Any_(), 2, sampler=Order(), **kw),
    "batch sampler": lambda kw: DataLoader(
        Any_(), batch_sampler=BatchSampler(AroundSampler(Order()), 2, False), **kw
    ),
    "stateful": lambda kw: Stateful(Subset(Curriculum(), range(4)), 2, **kw),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "batches": lambda: fl.Batches(Curriculum(), 2, shuffle=False),
    "batches of a part": lambda: fl.Batches(Subset(Curriculum(), range(4)), 2),
    "prefetched batches": lambda: fl.data.prefetch(fl.Batches(Around(Curriculum()), 2)),
    "an iterable": lambda: CurriculumStream(),
    "an iterable around a loader": lambda: AroundStream(DataLoader(Curriculum(), 2)),
}


def epochs_seen(data: Any, start: Cursor, epochs: int) -> list[set[int]]:
    """The epochs that the examples of each epoch were made in."""
    seen: list[set[int]] = [set() for _ in range(epochs)]
    epoch = start.epoch
    for after, batch in as_source(data).iterate(start):
        numbers = torch.as_tensor(batch[0] if isinstance(batch, list) else batch).reshape(-1)
        seen[epoch - start.epoch] |= {int(n) // 100 for n in numbers}
        epoch = after.epoch
        if epoch == start.epoch + epochs:
            break
    return seen


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", DATA)
def test_the_epoch_reaches_every_part_in_every_worker(name: str, workers: str) -> None:
    data = DATA[name](WORKERS[workers])
    assert epochs_seen(data, Cursor(), 3) == [{0}, {1}, {2}]
    resumed = DATA[name](WORKERS[workers])
    assert epochs_seen(resumed, Cursor(2, 0, 4), 2) == [{2}, {3}]


@pytest.mark.parametrize("name", OTHERS)
def test_the_epoch_reaches_what_other_sources_read_from(name: str) -> None:
    assert epochs_seen(OTHERS[name](), Cursor(), 3) == [{0}, {1}, {2}]
    assert epochs_seen(OTHERS[name](), Cursor(2, 0, 4), 2) == [{2}, {3}]


@pytest.mark.parametrize("kind", ["loader", "batches"])
def test_an_evaluation_of_the_same_dataset_does_not_turn_the_epoch_back(kind: str) -> None:
    dataset = Curriculum()
    makes: dict[str, Callable[[], Any]] = {
        "loader": lambda: DataLoader(dataset, 1),
        "batches": lambda: fl.Batches(dataset, 1, shuffle=False),
    }
    pairs = as_source(makes[kind]()).iterate(Cursor(3))
    seen = [int(next(pairs)[1])]
    evaluated = [int(batch) for batch in one_epoch(makes[kind]())]
    seen += [int(next(pairs)[1]) for _ in range(3)]
    assert evaluated == [0, 1, 2, 3] and seen == [300, 301, 302, 303]


def test_the_cursor_alone_tells_the_epoch() -> None:
    batches = fl.Batches(Curriculum(), 2, shuffle=False)
    for epoch in (5, 1, 5):
        assert batches.at(Cursor(epoch, 2, 9).tensor())[1].tolist() == [
            100 * epoch + 2,
            100 * epoch + 3,
        ]


def test_parts_are_found_once_and_long_lists_are_not_searched() -> None:
    inner = Curriculum()
    loop = Around(inner)
    loop.again = loop
    loop.names = [str(i) for i in range(9)]
    assert parts(loop, inner, None) == [loop, inner]
    assert parts(torch.nn.Linear(1, 1)) and len(parts([inner, inner])) == 2


class OwnGenerator(Sampler[int]):
    """A sampler with a random generator under a name of its own."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __iter__(self) -> Any:
        draw = {
            torch.Generator: lambda: torch.randperm(8, generator=self.rng).tolist(),
            random.Random: lambda: self.rng.sample(range(8), 8),
        }
        yield from draw.get(type(self.rng), lambda: self.rng.permutation(8).tolist())()

    def __len__(self) -> int:
        return 8


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "python": lambda: random.Random(3),
    "numpy": lambda: np.random.default_rng(3),
    "old numpy": lambda: np.random.RandomState(3),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_samplers_own_generator_starts_from_the_epochs_seed(name: str, nested: bool) -> None:
    rng = GENERATORS[name]()

    def read(cursor: Cursor, batches: int) -> list[list[int]]:
        sampler: Any = OwnGenerator(rng)
        if nested:
            sampler = AroundSampler(sampler)
        loader = DataLoader(range(8), 4, sampler=sampler)
        assert as_source(loader).about()["exact"] == "at once"
        pairs = as_source(loader).iterate(cursor, 5)
        return [next(pairs)[1].tolist() for _ in range(batches)]

    first = list(OwnGenerator(GENERATORS[name]()))
    whole = read(Cursor(), 6)
    assert read(Cursor(1, 1, 3), 3) == whole[3:] and whole[:2] != whole[2:4]
    assert list(OwnGenerator(rng)) == first  # and has its own state afterwards


class DrawsForItself(Dataset[float]):
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> float:
        return self.rng.random()


class StreamOfItself(IterableDataset[Any]):
    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __iter__(self) -> Any:
        yield from (self.rng.random() for _ in range(4))


@pytest.mark.parametrize(
    "data",
    [
        fl.Batches(DrawsForItself(), 2),
        DataLoader(Subset(DrawsForItself(), range(2)), 2),
        DataLoader(StreamOfItself(), 2),
        StreamOfItself(),
    ],
)
def test_data_with_a_generator_of_its_own_does_not_claim_to_be_exact(data: Any) -> None:
    about = as_source(data).about()
    assert about["exact"] == "no" and "(rng)" in about["reason"]


class Wrapping:
    def __init__(self, **options: Any) -> None:
        self.loader = DataLoader(TensorDataset(torch.arange(8)), 2, num_workers=1, **options)

    def __iter__(self) -> Any:
        return iter(self.loader)


def test_workers_that_persist_inside_of_other_data_do_not_claim_to_be_exact() -> None:
    about = as_source(Wrapping(persistent_workers=True)).about()
    assert about["exact"] == "no" and "persistent_workers=False" in about["reason"]
    assert as_source(Wrapping()).about()["exact"] == "by skipping"
    loader = Wrapping(persistent_workers=True).loader
    assert as_source(loader).about()["exact"] == "at once"
