from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fnloop.data.iterables import Again, Once, Stored, function_epochs, is_once, length, read
from fnloop.data.sources import as_source
from fnloop.values.cursor import Cursor


def noise(epoch: int) -> Iterator[tuple[float, float, float]]:
    for _ in range(4):
        yield float(torch.rand(())), random.random(), float(np.random.rand())


def walk(source: Any, cursor: Cursor, steps: int) -> list[Any]:
    pairs = source.iterate(cursor, 3)
    found = list(itertools.islice(pairs, steps))
    pairs.close()
    return found


def test_what_a_function_draws_is_found_again_by_skipping() -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    whole = walk(Again(noise, None), Cursor(), 10)
    assert len({number for _, batch in whole for number in batch}) == 30
    for i in (1, 3, 6):
        assert walk(Again(noise, None), whole[i][0], 9 - i) == whole[i + 1 :]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_what_an_iterator_draws_is_a_function_of_the_cursor() -> None:
    first = walk(Once(noise(0)), Cursor(), 4)
    assert walk(Once(noise(0)), first[1][0], 2) == first[2:]


def test_a_list_goes_on_at_its_place() -> None:
    assert [batch for _, batch in walk(Stored([5, 6, 7]), Cursor(1, 2, 5), 3)] == [7, 5, 6]


def test_reading_skips_but_counts() -> None:
    everything = list(read(lambda: noise(0), 0, seed=8))
    assert list(read(lambda: noise(0), 3, seed=8)) == everything[3:]
    assert list(read(lambda: noise(0), 4, seed=8)) == []


def test_an_epoch_that_is_too_short() -> None:
    for source, has in ((Again(noise, None), "fewer"), (Stored([1, 2]), "2")):
        with pytest.raises(ValueError, match=f"batch 9 of epoch 2, which has {has}"):
            walk(source, Cursor(2, 9, 20), 1)


def test_functions_and_lengths() -> None:
    assert list(function_epochs(range)(3)) == [0, 1, 2]
    assert length([1, 2]) == 2 and length(iter([1])) is None
    assert length(Unmeasured()) is None


class Unmeasured:
    def __len__(self) -> int:
        raise NotImplementedError


class Restarts:
    """A loader whose ``__iter__`` starts anew and returns itself."""

    def __iter__(self) -> Any:
        self.left = [1, 2, 3]
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


class Plain:
    """An iterator as it should be."""

    def __init__(self) -> None:
        self.left = [1, 2, 3]

    def __iter__(self) -> Any:
        """Itself."""
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


class Refills(Plain):
    """A loader that is full again after its end, as DALI's with ``auto_reset``."""

    def __len__(self) -> int:
        return 3

    def __next__(self) -> int:
        if not self.left:
            self.left = [1, 2, 3]
            raise StopIteration
        return self.left.pop(0)


class Inherits(Iterator[int]):
    def __next__(self) -> int:
        return 1


def test_only_an_iterator_that_goes_on_is_read_once() -> None:
    once = [iter([1]), zip([1]), (i for i in [1]), Plain(), Refills(), Inherits()]
    once.append(iter(DataLoader([1, 2])))  # type: ignore[arg-type]  # pyright: ignore
    assert all(map(is_once, once))
    loader: Any = DataLoader([1])  # type: ignore[arg-type]  # pyright: ignore
    assert not any(map(is_once, [[1], (1,), Restarts(), loader, lambda epoch: [1]]))


def test_a_loader_that_restarts_and_returns_itself_is_read_each_epoch() -> None:
    def read(start: Cursor, batches: int) -> list[Any]:
        pairs = as_source(Restarts()).iterate(start)
        return [(tuple(after), batch) for after, batch in itertools.islice(pairs, batches)]

    whole = read(Cursor(), 7)
    assert [batch for _, batch in whole] == [1, 2, 3, 1, 2, 3, 1]
    assert [after for after, _ in whole][2::3] == [(1, 0, 3), (2, 0, 6)]
    assert read(Cursor(1, 1, 4), 3) == whole[4:]
    assert as_source(Restarts()).about()["exact"] == "by skipping"  # type: ignore[attr-defined]  # pyright: ignore


def test_an_iterator_with_a_length_ends_its_epochs_there() -> None:
    found = list(itertools.islice(Once(Refills()).iterate(), 3))  # type: ignore[arg-type]
    assert found[-1] == ((1, 0, 3), 3)
    loader = iter(DataLoader([1, 2, 3, 4], 2))  # type: ignore[arg-type]  # pyright: ignore
    afters = [after for after, _ in Once(loader).iterate()]
    assert afters == [(0, 1, 1), (1, 0, 2)]
