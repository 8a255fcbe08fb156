from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fnloop.data import gathering
from fnloop.data.batches import Batches
from fnloop.data.gathering import at_once, gathered
from fnloop.values.cursor import Cursor


def columns() -> tuple[Tensor, Tensor]:
    x = torch.arange(1000.0)[:, None] + torch.arange(4) / 8
    return x, torch.arange(1000)


def test_batches_are_those_that_are_read_one_by_one() -> None:
    data, seen = columns(), 0
    assert at_once(data, 16) > 4
    cursor = Cursor().tensor()
    for (after, (x, y)), _ in zip(Batches(data, 16).iterate(), range(150), strict=False):
        cursor, (one, label) = Batches(data, 16).at(cursor)
        assert Cursor.of(cursor) == after
        assert torch.equal(x, one) and torch.equal(y, label)
        seen += after.index == 0
    assert seen == 2  # ends of epochs, whose last batch is smaller


def test_a_write_to_one_batch_leaves_the_others_alone() -> None:
    x, y = columns()
    pairs = gathered((x, y), torch.arange(200), 16, 8)
    (first, _), (second, _) = next(pairs), next(pairs)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    first.requires_grad_()
    loss = first.square().sum()
    second.zero_()  # autograd would refuse the backward pass, if both were views of one tensor
    loss.backward()
    assert torch.equal(first, x[:16]) and torch.equal(next(pairs)[0], x[32:48])


def by_torch(x: Tensor) -> None:
    x.neg_()


def by_a_view(x: Tensor) -> None:
    x[500:].neg_()
    x[:500].neg_()


@pytest.mark.parametrize("write", [by_torch, by_a_view])
def test_what_is_written_to_the_data_is_in_the_next_batch(write: Callable[[Tensor], None]) -> None:
    x, y = columns()
    batches = Batches((x, y), 16)
    cursor, drawn = Cursor(), batches.iterate()
    for i in range(70):
        if i % 5 == 3:
            write(x)
        expected = Batches((x, y), 16).at(cursor.tensor())[1]
        cursor, batch = next(drawn)
        assert all(map(torch.equal, batch, expected))


def shared(x: Tensor) -> tuple[Any, Callable[[], object]]:
    x.share_memory_()
    return x, x.neg_


def array(x: Tensor) -> tuple[Any, Callable[[], object]]:
    own = x.numpy().copy()
    return own, lambda: np.negative(own, out=own)


def from_array(x: Tensor) -> tuple[Any, Callable[[], object]]:
    own = x.numpy().copy()
    return torch.from_numpy(own), lambda: np.negative(own, out=own)


@pytest.mark.parametrize("have", [shared, array, from_array])
def test_memory_that_others_have_is_read_batch_by_batch(
    have: Callable[[Tensor], tuple[Any, Callable[[], object]]],
) -> None:
    data, write = have(columns()[0])
    assert at_once([torch.as_tensor(data)], 16) == 1
    drawn = Batches(data, 16).iterate()
    after, _ = next(drawn)
    write()
    assert torch.equal(next(drawn)[1], Batches(data, 16).at(after.tensor())[1])


class Own(Tensor):
    pass


def test_what_is_gathered_at_once() -> None:
    x, y = columns()
    assert at_once([x, y], 16) == (1 << 18) // (16 * (16 + 8))
    assert at_once([x], 3) == 1  # 48 bytes a batch: the second would not begin where it should
    assert at_once([x, y], 4) == 1  # of the labels, 32
    assert at_once([x, y[:, None].expand(-1, 3000)], 16) == 1  # large batches
    assert at_once([x.clone().requires_grad_()], 16) == 1
    assert at_once([x.as_subclass(Own)], 16) == 1
    with torch.inference_mode():
        assert at_once([x.clone()], 16) == 1


@pytest.mark.parametrize("size", [1, 3, 7, 16, 64])
def test_batches_begin_where_memory_of_their_own_does(size: int) -> None:
    for _, (x, y) in zip(range(100), Batches(columns(), size), strict=False):
        assert x.data_ptr() % gathering._ALIGNED == 0 == y.data_ptr() % gathering._ALIGNED


def test_gradients_reach_the_data() -> None:
    x = columns()[0].requires_grad_()
    sum(batch.sum() for batch in Batches(x, 16)).backward()  # type: ignore[union-attr]
    assert x.grad is not None and bool((x.grad == 1).all())
