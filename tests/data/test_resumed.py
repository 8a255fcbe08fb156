from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fnloop.data.batches import Batches
from fnloop.data.resumed import resumed_index
from fnloop.data.sources import as_source
from fnloop.values.cursor import Cursor


def loader(size: int, drop_last: bool = False) -> Any:
    data = TensorDataset(torch.arange(20))
    return as_source(DataLoader(data, size, shuffle=True, drop_last=drop_last))


def seen(source: Any, cursor: Cursor, until: int) -> list[int]:
    pairs = itertools.takewhile(
        lambda pair: pair[0].epoch < until or not pair[0].index, source.iterate(cursor, 3)
    )
    found: list[int] = []
    for after, batch in pairs:
        found += batch[0].tolist()
        if after.epoch == until:
            break
    return found


@pytest.mark.parametrize("old", [2, 3, 7])
@pytest.mark.parametrize("new", [1, 3, 4, 20, 50])
def test_no_example_is_left_out_and_the_sentence_counts_those_seen_twice(
    old: int, new: int
) -> None:
    before, now = loader(old), loader(new)
    for steps in range(1, before.batches):
        pairs = list(itertools.islice(before.iterate(Cursor(), 3), steps))
        first = [i for _, batch in pairs for i in batch[0].tolist()]
        cursor, sentence = resumed_index(pairs[-1][0], before.about(), now.about())
        assert (cursor.epoch, cursor.count) == (0, steps)
        rest = seen(now, cursor, 1)
        assert set(first) | set(rest) == set(range(20))
        twice = len(first) + len(rest) - 20
        assert 0 <= twice < new
        if old == new:
            assert sentence is None
        elif twice:
            assert sentence is not None and f"{twice} examples are seen twice" in sentence
        else:
            assert sentence is not None and "none is seen twice" in sentence


def test_the_next_epoch_begins_where_no_batch_is_left() -> None:
    before, now = loader(4).about(), loader(11, drop_last=True).about()
    cursor, sentence = resumed_index(Cursor(2, 4, 14), before, now)
    assert cursor == (3, 0, 14) and sentence is not None and "next epoch begins" in sentence


@pytest.mark.parametrize("cursor", [Cursor(), Cursor(1, 0, 7)])
def test_at_the_beginning_of_an_epoch_there_is_nothing_to_do(cursor: Cursor) -> None:
    assert resumed_index(cursor, loader(3).about(), loader(4).about()) == (cursor, None)


def test_where_the_index_counts_examples_there_is_nothing_to_do() -> None:
    data = torch.arange(20)
    about = [Batches(data, size).about() for size in (3, 4)]
    assert resumed_index(Cursor(0, 9, 3), *about) == (Cursor(0, 9, 3), None)


def test_unknown_sizes_are_left_alone() -> None:
    about: Any = as_source([1, 2, 3])
    for before, now in ((about.about(), loader(4).about()), ({}, {})):
        assert resumed_index(Cursor(0, 2, 2), before, now) == (Cursor(0, 2, 2), None)


def test_from_a_loader_to_batches_the_other_order_is_said() -> None:
    now = Batches(torch.arange(20), 4).about()
    cursor, sentence = resumed_index(Cursor(0, 3, 3), loader(4).about(), now)
    assert cursor == (0, 12, 3) and sentence is not None
    assert "was DataLoader and is Batches" in sentence and "another order" in sentence
    assert "example 12" in sentence


def test_a_loader_with_a_state_of_its_own_keeps_its_cursor() -> None:
    before, now = ({"exact": "by its own state", "batch_size": n} for n in (3, 4))
    cursor, sentence = resumed_index(Cursor(0, 2, 2), before, now)
    assert cursor == (0, 2, 2) and sentence is not None and "its own state" in sentence
    assert resumed_index(Cursor(0, 2, 2), now, now) == (Cursor(0, 2, 2), None)
