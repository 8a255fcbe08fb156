"""What is read in the data's own order, and what is refused because it is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import fnloop as fl

N = 12
NUMBERS = torch.arange(N)
DATASET = TensorDataset(NUMBERS)
STATE = fl.grad(lambda m, b: m(b).mean()).init(torch.nn.Linear(1, 1))


def predicted(data: Any) -> list[int]:
    first = lambda m, b: (b[0] if isinstance(b, list | tuple) else b).reshape(-1)  # noqa: E731
    return torch.cat(list(fl.predict(first, STATE, data))).tolist()


class Ours(Sampler[int]):
    """A sampler of one's own, in an order that `make` gives."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __iter__(self) -> Any:
        return iter(self.make())

    def __len__(self) -> int:
        return N


class Stream(IterableDataset[Any]):
    def __init__(self, order: Callable[[], Any] = lambda: range(N), shuffle: Any = None) -> None:
        self.order = order
        self.shuffle = shuffle

    def __iter__(self) -> Any:
        yield from (torch.tensor(int(i)) for i in self.order())


class Wrapper:
    """A loader around another, as for moving batches to a device."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        yield from self.loader


def batches() -> list[Any]:
    return list(NUMBERS.split(4))


class Reader(Stream):
    """A stream with a state of its own."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


class ReaderOnce(Reader):
    """An iterator with a state of its own."""

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if not hasattr(self, "left"):
            self.left = [torch.tensor(int(i)) for i in self.order()]
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


IN_ORDER: dict[str, Callable[[], Any]] = {
    "batches": lambda: fl.Batches(NUMBERS, 5, shuffle=False),
    "batches of a dataset": lambda: fl.Batches(DATASET, 5, shuffle=False),
    "prefetched": lambda: fl.data.prefetch(fl.Batches(NUMBERS, 5, shuffle=False)),
    "tuple": lambda: (NUMBERS,),
    "array": lambda: NUMBERS.numpy(),
    "list": batches,
    "iterator": lambda: iter(batches()),
    "function": lambda: lambda epoch: batches(),
    "generator function": lambda: lambda epoch: (b for b in batches()),
    "loader": lambda: DataLoader(DATASET, 5),
    "loader with workers": lambda: DataLoader(DATASET, 5, num_workers=2, persistent_workers=True),
    "loader without batches": lambda: DataLoader(DATASET, None),
    "loader with a collate_fn": lambda: DataLoader(DATASET, 5, collate_fn=lambda x: x[0]),
    "sampler in order": lambda: DataLoader(DATASET, 5, sampler=Ours(lambda: range(N))),
    "numpy's integers": lambda: DataLoader(DATASET, 5, sampler=Ours(lambda: np.arange(N))),
    "tensor of indices": lambda: DataLoader(DATASET, 5, sampler=Ours(lambda: torch.arange(N))),
    "batch sampler": lambda: DataLoader(
        DATASET, batch_sampler=BatchSampler(Ours(lambda: range(N)), 5, False)
    ),
    "one process of one": lambda: DataLoader(
        DATASET, 5, sampler=DistributedSampler(DATASET, 1, 0, shuffle=False)
    ),
    "parts": lambda: DataLoader(
        ConcatDataset([Subset(DATASET, range(5)), Subset(DATASET, range(5, N))]), 5
    ),
    "stream": lambda: DataLoader(Stream(), 5),
    "stream in a worker": lambda: DataLoader(Stream(), 5, num_workers=1),
    "wrapper": lambda: Wrapper(DataLoader(DATASET, 5)),
    "wrapper with workers": lambda: Wrapper(DataLoader(DATASET, 5, num_workers=1)),
    "function of loaders": lambda: lambda epoch: DataLoader(DATASET, 5),
    "stateful": lambda: Reader(),
    "stateful iterator": lambda: ReaderOnce(),
    "chain": lambda: DataLoader(ChainDataset([Stream()]), 5),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_is_in_order_is_read(name: str) -> None:
    found = predicted(IN_ORDER[name]())
    if name == "loader with a collate_fn":
        assert found == [0, 5, 10]
    else:
        assert found == list(range(N))


def test_a_list_of_indices_is_an_order_of_ones_own() -> None:
    assert predicted(DataLoader(DATASET, 2, sampler=[3, 1, 2])) == [3, 1, 2]
    assert predicted(DataLoader(DATASET, batch_sampler=[[3, 1], [2]])) == [3, 1, 2]


class KeepsShuffling(Dataset[Any]):
    shuffle = True

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> int:
        return i


def shuffled() -> list[int]:
    order = list(range(N))
    random.shuffle(order)
    return order


SHUFFLED: dict[str, Callable[[], Any]] = {
    "batches": lambda: fl.Batches(NUMBERS, 5),
    "prefetched": lambda: fl.data.prefetch(fl.Batches(NUMBERS, 5)),
    "prefetched loader": lambda: fl.data.prefetch(DataLoader(DATASET, 5, shuffle=True)),
    "loader": lambda: DataLoader(DATASET, 5, shuffle=True),
    "workers": lambda: DataLoader(DATASET, 5, shuffle=True, num_workers=1),
    "random": lambda: DataLoader(DATASET, 5, sampler=RandomSampler(DATASET, replacement=True)),
    "weighted": lambda: DataLoader(DATASET, 5, sampler=WeightedRandomSampler([1.0] * N, N)),
    "subset": lambda: DataLoader(DATASET, 5, sampler=SubsetRandomSampler(range(N))),
    "distributed": lambda: DataLoader(DATASET, 5, sampler=DistributedSampler(DATASET, 1, 0)),
    "ours, torch": lambda: DataLoader(DATASET, 5, sampler=Ours(lambda: torch.randperm(N))),
    "ours, random": lambda: DataLoader(DATASET, 5, sampler=Ours(shuffled)),
    "ours, fixed": lambda: DataLoader(DATASET, 5, sampler=Ours(lambda: range(N)[::-1])),
    "ours, its own": lambda: DataLoader(
        DATASET, 5, sampler=Ours(lambda: np.random.default_rng(0).permutation(N))
    ),
    "ours without batches": lambda: DataLoader(DATASET, None, sampler=Ours(shuffled)),
    "batch sampler": lambda: DataLoader(
        DATASET, batch_sampler=BatchSampler(RandomSampler(DATASET), 5, False)
    ),
    "our batch sampler": lambda: DataLoader(
        DATASET,
        batch_sampler=Ours(lambda: [[4, 5], [0, 1]]),
    ),
    "the workers' speed": lambda: DataLoader(DATASET, 5, num_workers=1, in_order=False),
    "an attribute": lambda: fl.Batches(KeepsShuffling(), 5, shuffle=False),
    "a nested one": lambda: DataLoader(Subset(KeepsShuffling(), range(N)), 5),
    "a stream's attribute": lambda: DataLoader(Stream(shuffle=True), 5),
    "a stream": lambda: DataLoader(Stream(shuffled), 5),
    "a stream, torch": lambda: DataLoader(Stream(lambda: torch.randperm(N)), 5),
    "a stream, numpy": lambda: DataLoader(Stream(lambda: np.random.permutation(N)), 5),
    "a stream in workers": lambda: DataLoader(
        Stream(shuffled), 5, num_workers=1, persistent_workers=True
    ),
    "a chain": lambda: DataLoader(ChainDataset([Stream(), Stream(shuffled)]), 5),
    "stateful": lambda: Reader(shuffled),
    "a stateful iterator": lambda: ReaderOnce(shuffled),
    "a wrapper": lambda: Wrapper(DataLoader(DATASET, 5, shuffle=True)),
    "a function": lambda: lambda epoch: (NUMBERS[i] for i in shuffled()),
    "a function of a loader": lambda: lambda epoch: DataLoader(DATASET, 5, shuffle=True),
    "an iterator": lambda: iter(Stream(shuffled)),
}


@pytest.mark.parametrize("name", SHUFFLED)
def test_what_is_shuffled_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match=r"in the order of the data, but .*To predict: "):
        predicted(SHUFFLED[name]())


def test_evaluation_and_training_may_shuffle_the_same_data() -> None:
    mean = lambda m, b: fl.Mean(b[0].double().sum(), len(b[0]))  # noqa: E731
    for data in (fl.Batches(DATASET, 5), DataLoader(DATASET, 5, shuffle=True)):
        assert fl.evaluate(mean, STATE, data) == {"loss": pytest.approx(5.5)}


def test_a_stage_of_torchs_data_pipes_is_seen() -> None:
    pipes = pytest.importorskip("torch.utils.data.datapipes.iter")
    pipe = pipes.Shuffler(pipes.IterableWrapper(range(N)))
    with pytest.raises(ValueError, match="ShufflerIterDataPipe"):
        predicted(DataLoader(pipe, 4))
