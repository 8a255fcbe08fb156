from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fnloop.data.iterables import Again, Once, Stored, function_epochs, length, read
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
