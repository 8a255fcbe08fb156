from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

from fnloop.data.batches import Batches
from fnloop.data.sources import Source, as_source, one_epoch
from fnloop.values.cursor import Cursor


def walk(source: Source, cursor: Cursor, steps: int, key: int = 0) -> list[tuple[Cursor, Any]]:
    pairs = source.iterate(cursor, key)
    result = [(after, flat(batch)) for after, batch in itertools.islice(pairs, steps)]
    pairs.close()
    return result


def flat(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


class Noisy(Dataset[Any]):
    """Each example is its number plus a fresh random number."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> torch.Tensor:
        return i + torch.rand((), dtype=torch.float64)


class ByEpoch(Sampler[int]):
    """Like DistributedSampler: the order follows from set_epoch alone."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([(i + self.epoch) % 10 for i in range(10)])

    def __len__(self) -> int:
        return 10


class Shuffled:
    """A re-iterable of the user's own that draws from the global generator as it goes."""

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(7):
            yield i + torch.rand(())


def generator_loader() -> DataLoader[Any]:
    return DataLoader(Noisy(), 3, shuffle=True, generator=torch.Generator().manual_seed(3))


def sampler_loader() -> DataLoader[Any]:
    sampler = RandomSampler(range(10), replacement=True, generator=torch.Generator())
    return DataLoader(Noisy(), 3, sampler=sampler)


MAKERS: dict[str, tuple[Callable[[], Any], int]] = {
    "batches": (lambda: Batches(torch.arange(10), 3), 4),
    "list": (lambda: ["a", "b", "c"], 3),
    "one batch": (lambda: ["a"], 1),
    "function": (lambda: lambda epoch: (epoch * 10 + i for i in range(epoch + 2)), 2),
    "random re-iterable": (Shuffled, 7),
    "loader": (lambda: DataLoader(Noisy(), 3), 4),
    "shuffled loader": (lambda: DataLoader(Noisy(), 3, shuffle=True), 4),
    "drop_last": (lambda: DataLoader(Noisy(), 3, shuffle=True, drop_last=True), 3),
    "loader with generator": (generator_loader, 4),
    "loader with sampler": (sampler_loader, 4),
}


@pytest.mark.lightning("T36")
@pytest.mark.parametrize("name", MAKERS)
def test_resumes_exactly_from_every_cursor(name: str) -> None:
    make, batches = MAKERS[name]
    before = torch.get_rng_state()
    steps = 2 * batches + 3
    whole = walk(as_source(make()), Cursor(), steps, key=9)
    for i in range(steps - 1):
        torch.rand(3)  # what else happens in the process does not matter
        assert walk(as_source(make()), whole[i][0], steps - 1 - i, key=9) == whole[i + 1 :]
    assert [after.count for after, _ in whole] == list(range(1, steps + 1))
    epochs = [after.epoch for after, _ in whole]
    assert epochs[batches - 1] == 1 and epochs[: batches - 1] == [0] * (batches - 1)
    assert whole[batches - 1][0] == (1, 0, batches)
    torch.set_rng_state(before)


@pytest.mark.parametrize("persistent", [False, True])
def test_two_workers_resume_exactly(persistent: bool) -> None:
    def make() -> Source:
        # Workers that persist keep their random numbers from epoch to epoch: shuffle only.
        data: Any = TensorDataset(torch.arange(10)) if persistent else Noisy()
        return as_source(
            DataLoader(data, 3, shuffle=True, num_workers=2, persistent_workers=persistent)
        )

    whole = walk(make(), Cursor(), 7, key=4)
    assert str(walk(make(), whole[1][0], 5, key=4)) == str(whole[2:])
    assert str(walk(make(), whole[4][0], 2, key=4)) == str(whole[5:])


@pytest.mark.parametrize("name", ["shuffled loader", "loader with generator", "random re-iterable"])
def test_order_is_a_function_of_key_and_epoch(name: str) -> None:
    make, batches = MAKERS[name]
    source = as_source(make())

    def order(epoch: int, key: int) -> list[int]:
        pairs = walk(source, Cursor(epoch), batches, key)
        return [int(x) for _, b in pairs for x in (b if isinstance(b, list) else [b])]

    assert sorted(order(0, 1)) == list(range(len(order(0, 1))))
    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for name in MAKERS:
        walk(as_source(MAKERS[name][0]()), Cursor(), 5)
    walk(as_source(torch.rand(2) for _ in range(3)), Cursor(), 2)
    pairs = as_source(DataLoader(Noisy(), 3, num_workers=1, shuffle=True)).iterate()
    next(pairs)
    assert torch.equal(torch.get_rng_state(), before)
    pairs.close()


def test_a_loader_gets_its_own_generators_back() -> None:
    loader = DataLoader(Noisy(), 3, shuffle=True)
    walk(as_source(loader), Cursor(), 6)
    assert loader.generator is None and loader.sampler.generator is None  # pyright: ignore


def test_samplers_hear_the_epoch() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10)), 5, sampler=ByEpoch())
    firsts = [b[0][0].item() for _, b in walk(as_source(loader), Cursor(), 6)]
    assert firsts == [0, 5, 1, 6, 2, 7]


def test_lengths() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    assert as_source([1, 2]).batches == 2
    assert as_source(DataLoader(Noisy(), 3)).batches == 4
    assert as_source(Batches(torch.arange(10), 4)).batches == 3
    assert as_source(DataLoader(Stream(), 2)).batches is None
    assert as_source(Stream()).batches is None
    assert as_source(iter([1])).batches is None
    ends = [after for after, _ in walk(as_source(DataLoader(Stream(), 2)), Cursor(), 4)]
    assert ends == [(0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4)]


def test_bare_tensors_are_one_batch_an_epoch() -> None:
    x, y = torch.arange(4.0), np.arange(4)
    source = as_source((x, y))
    assert source.batches == 1
    pairs = list(itertools.islice(source.iterate(), 2))
    assert [after for after, _ in pairs] == [(1, 0, 1), (2, 0, 2)]
    for _, (a, b) in pairs:
        assert torch.equal(a, x) and torch.equal(b, torch.arange(4))
    assert as_source({"x": x}).batches == as_source(x).batches == 1


def test_an_iterator_goes_on_from_where_it_stands() -> None:
    items = iter("abcde")
    next(items)
    assert walk(as_source(items), Cursor(), 2) == [((0, 1, 1), "b"), ((0, 2, 2), "c")]
    # Nothing was read ahead, and the cursor does not make it skip.
    assert walk(as_source(items), Cursor(0, 2, 2), 9) == [((0, 3, 3), "d"), ((0, 4, 4), "e")]


def test_an_exhausted_iterator_says_so() -> None:
    items = iter([1, 2])
    source = as_source(items)
    assert len(walk(source, Cursor(), 5)) == 2
    for again in (source, as_source(items)):
        with pytest.raises(ValueError, match=r"list_iterator can be read only once.*pass a list"):
            next(again.iterate(Cursor(0, 2, 2)))


def test_empty_epochs_are_errors() -> None:
    with pytest.raises(ValueError, match="Epoch 0 of the data has no batch"):
        next(as_source([]).iterate())
    loader = DataLoader(TensorDataset(torch.ones(22, 3)), batch_size=64, drop_last=True)
    with pytest.raises(
        ValueError, match=r"leaves no batch: .* 22 examples, and its batch_size is 64"
    ):
        as_source(loader)

    class OnlyOnce:
        def __init__(self) -> None:
            self.items = iter([1, 2])

        def __iter__(self) -> Iterator[int]:
            return self.items

    pairs = as_source(OnlyOnce()).iterate()
    assert [batch for _, batch in itertools.islice(pairs, 2)] == [1, 2]
    with pytest.raises(ValueError, match=r"Epoch 1 .* only once"):
        next(pairs)


def test_a_cursor_from_other_data() -> None:
    with pytest.raises(ValueError, match="batch 5 of epoch 2, which has 3"):
        next(as_source([1, 2, 3]).iterate(Cursor(2, 5, 11)))


def test_errors_of_the_data_come_through() -> None:
    def data(epoch: int) -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("broken example")

    pairs = as_source(data).iterate()
    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="broken example"):
        list(pairs)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_data() -> None:
    with pytest.raises(TypeError, match=r"Noisy is a dataset of single examples.*fl.Batches"):
        as_source(Noisy())

    class Bare:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> int:
            return i

    for data in (Bare(), TensorDataset(torch.zeros(3))):
        with pytest.raises(TypeError, match="dataset of single examples"):
            as_source(data)
    for data in (3, None, "text"):
        with pytest.raises(TypeError, match="is not accepted as data"):
            as_source(data)
    with pytest.raises(TypeError, match=r"not a class; create one: Noisy\(...\)"):
        as_source(Noisy)
    with pytest.raises(ValueError, match="Every leaf must be a tensor"):
        as_source((DataLoader(Noisy()),))


def test_data_functions_are_checked() -> None:
    def without_epoch() -> list[int]:
        return [1]

    with pytest.raises(TypeError, match=r"without_epoch must take the epoch"):
        as_source(without_epoch)

    def nothing(epoch: int) -> None:
        return None

    with pytest.raises(TypeError, match="nothing returned NoneType for epoch 0"):
        next(as_source(nothing).iterate())


def test_one_epoch() -> None:
    assert list(one_epoch([1, 2, 3])) == [1, 2, 3]
    assert list(one_epoch(iter([1, 2]))) == [1, 2]
    assert torch.cat(list(one_epoch(Batches(torch.arange(10), 3, shuffle=False)))).tolist() == list(
        range(10)
    )
