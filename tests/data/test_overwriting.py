"""Streams that write a batch over the one before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fnloop as fl
from fnloop.data.overwriting import HeldBatch
from fnloop.data.sources import as_source, one_epoch


def filled(buffer: Any, views: Any = lambda x: x) -> Iterator[Any]:
    for i in range(4):
        buffer[...] = i
        yield views(buffer)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return filled(torch.zeros(3, 5))


class Items(Dataset[Any]):
    def __init__(self) -> None:
        self.buffer = torch.zeros(3, 5)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.buffer.fill_(index)


class Stateful:
    def __iter__(self) -> Iterator[Any]:
        return filled(np.zeros(3))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


SHARED = torch.zeros(2, 5)


def collate(items: list[Any]) -> Any:
    return SHARED.fill_(float(items[0]))


OVERWRITING = {
    "tensors": lambda: lambda epoch: filled(torch.zeros(64, 64)),
    "a small one": lambda: lambda epoch: filled(torch.zeros(1, 1)),
    "half precision": lambda: lambda epoch: filled(torch.zeros(3).bfloat16()),
    "arrays": lambda: lambda epoch: filled(np.zeros((7, 33), np.float32)),
    "tensors of an array": lambda: lambda epoch: filled(np.zeros((4, 4)), torch.from_numpy),
    "in a dict": lambda: lambda epoch: filled(torch.zeros(9), lambda x: {"y": (1, "a"), "x": x}),
    "a stream": lambda: DataLoader(Stream(), batch_size=None),
    "items": lambda: DataLoader(Items(), batch_size=None),
    "a collate function": lambda: DataLoader(range(8), 2, collate_fn=collate),
    "read ahead": lambda: fl.data.prefetch(lambda epoch: filled(torch.zeros(3, 5))),
    "an iterator read ahead": lambda: fl.data.prefetch(filled(torch.zeros(3, 5))),
    "an iterator, grouped": lambda: fl.data.group(filled(torch.zeros(3, 5)), 2),
    "a loader with a state": lambda: Stateful(),
    "mixed": lambda: fl.data.together(a=lambda epoch: filled(torch.zeros(3)), b=[1, 2, 3, 4]),
    "grouped": lambda: fl.data.group(lambda epoch: filled(torch.zeros(3, 5)), 2),
}


@pytest.mark.parametrize("name", OVERWRITING)
def test_they_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"written batch 2 of the (run|group) over batch 1(.|\n)*clone\(\)"
    ):
        list(itertools.islice(as_source(OVERWRITING[name]()).iterate(), 3))


def test_the_leaf_is_named() -> None:
    with pytest.raises(ValueError, match=r"over batch 1, at 'x', which"):
        list(one_epoch(OVERWRITING["in a dict"]()))


def in_turns(epoch: int) -> Iterator[Any]:
    buffers = torch.zeros(2, 3)
    for i in range(4):
        yield buffers[i % 2].fill_(i)


IN_TURNS = {
    "read ahead": lambda: fl.data.prefetch(in_turns(0)),
    "read further ahead": lambda: fl.data.prefetch(lambda epoch: in_turns(epoch), depth=4),
    "of two, read ahead": lambda: fl.data.prefetch(fl.data.together(a=in_turns, b=[1, 2, 3, 4])),
    "grouped": lambda: fl.data.group(in_turns(0), 3),
}


@pytest.mark.parametrize("name", IN_TURNS)
def test_two_buffers_are_too_few_for_what_is_read_further_ahead(name: str) -> None:
    with pytest.raises(ValueError, match=r"written batch 3 of the (run|group) over batch 1, "):
        list(itertools.islice(as_source(IN_TURNS[name]()).iterate(), 4))


def test_a_step_may_write_to_its_batch() -> None:
    mask = torch.ones(3)
    batches = fl.data.prefetch(
        lambda epoch: ((torch.full((3,), float(i)), mask) for i in range(40))
    )
    drawn = [float(x.neg_()[0]) for x, _ in one_epoch(batches)]
    assert drawn == [-float(i) for i in range(40)]


FINE = {
    "the same batch each time": lambda epoch: itertools.repeat(torch.ones(3), 4),
    "copies": lambda epoch: filled(torch.zeros(3), torch.clone),
    "two buffers in turns": in_turns,
    "objects": lambda epoch: iter([object(), None, "a", np.array(["a", None])]),
    "conjugates": lambda epoch: (torch.ones(2, dtype=torch.complex64).conj() * i for i in range(4)),
    "sparse rows": lambda epoch: (torch.eye(3).to_sparse_csr() * i for i in range(4)),
    "arrays of objects": lambda epoch: (
        np.array([(i, "a")], dtype=[("n", int), ("name", object)]) for i in range(4)
    ),
    "strided": lambda epoch: (torch.ones(2, 3).t() * i for i in range(4)),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", FINE)
def test_others_are_read(name: str) -> None:
    assert len(list(one_epoch(FINE[name]))) == 4


def test_every_byte_position_is_looked_at() -> None:
    # Small integers in float32 differ in their high bytes alone.
    for size in (1, 3, 4, 8, 48, 100, 1000, 4096, 12345):
        buffer = torch.zeros(size)
        held = HeldBatch(buffer)
        buffer.fill_(1)
        assert held.overwritten() == "", size
