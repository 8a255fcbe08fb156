from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
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
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from fnloop.data.loader import Loader
from fnloop.data.prefetching import prefetch
from fnloop.data.sources import one_epoch
from fnloop.values.cursor import Cursor


class Augmented(Dataset[Any]):
    """Each example is its number and a draw from each generator that augmentations use."""

    def __init__(self, n: int = 10) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> tuple[int, float, float, float]:
        number = i if isinstance(i, int) else int(i[0])
        return (number, float(torch.rand(())), random.random(), float(np.random.rand()))


def rows(batches: list[Any]) -> list[tuple[float, ...]]:
    """The examples of collated batches, one by one."""
    return [
        tuple(row) for batch in batches for row in zip(*(c.tolist() for c in batch), strict=True)
    ]


def walk(loader: Any, cursor: Cursor, steps: int, key: int = 7) -> list[Any]:
    pairs = Loader(loader).iterate(cursor, key)
    result = [batch for _, batch in itertools.islice(pairs, steps)]
    pairs.close()
    return result


def two_epochs(loader: DataLoader[Any]) -> list[tuple[float, ...]]:
    return rows(walk(loader, Cursor(), 2 * len(loader)))


REFERENCE = two_epochs(DataLoader(Augmented(), 1))
MATRIX = [
    (workers, persistent, size)
    for workers in (0, 1, 2)
    for persistent in ((False, True) if workers else (False,))
    for size in (2, 3)
]


@pytest.mark.lightning("Z1")
@pytest.mark.parametrize(("workers", "persistent", "size"), MATRIX)
def test_what_an_example_draws_does_not_depend_on_workers_or_batches(
    workers: int, persistent: bool, size: int
) -> None:
    options: Any = {"num_workers": workers, "persistent_workers": persistent}
    plain = DataLoader(Augmented(), size, **options)
    assert two_epochs(plain) == REFERENCE
    # Nor on the order, and a run that is resumed in mid-epoch draws the same.
    shuffled = DataLoader(Augmented(), size, shuffle=True, **options)
    steps = 2 * len(shuffled)
    whole = walk(shuffled, Cursor(), steps)
    assert sorted(rows(whole[: len(shuffled)])) == sorted(REFERENCE[:10])
    assert sorted(rows(whole[len(shuffled) :])) == sorted(REFERENCE[10:])
    resumed = DataLoader(Augmented(), size, shuffle=True, **options)
    assert str(walk(resumed, Cursor(0, 2, 2), steps - 2)) == str(whole[2:])


def test_examples_epochs_keys_and_generators_draw_different_numbers() -> None:
    numbers = [number for row in REFERENCE for number in row[1:]]
    other = rows(walk(DataLoader(Augmented(), 3), Cursor(), 4, key=8))
    numbers += [number for row in other for number in row[1:]]
    assert len(set(numbers)) == len(numbers) == 90


def test_skipping_takes_no_examples() -> None:
    taken: list[int] = []

    class Noted(Augmented):
        def __getitem__(self, i: int) -> Any:
            taken.append(i)
            return super().__getitem__(i)

    walk(DataLoader(Noted(), 2), Cursor(0, 3, 3), 1)
    assert taken == [6, 7, 8, 9]  # the batch, and the one that is read ahead


def test_an_example_that_is_drawn_again_is_augmented_anew() -> None:
    """Oversampled classes would else see the same augmentation in the whole epoch."""

    def make(workers: int) -> DataLoader[Any]:
        sampler = WeightedRandomSampler([1.0] * 3, 12)
        return DataLoader(Augmented(3), 2, sampler=sampler, num_workers=workers)

    found = rows(walk(make(0), Cursor(), 6))
    assert len({row[0] for row in found}) <= 3 and len({row[1:] for row in found}) == 12
    assert rows(walk(make(1), Cursor(), 6)) == found
    assert rows(walk(make(0), Cursor(0, 2, 2), 4)) == found[4:]
    first = {}
    for row in found:
        first.setdefault(row[0], row)
    assert set(first.values()) <= set(rows(walk(DataLoader(Augmented(3), 3), Cursor(), 1)))


class Pairs(Sampler[Any]):
    """Indices that are no integers, in batches that can be iterated once."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        order = random.sample(range(10), 10)  # from Python's own generator
        for start in range(0, 10, self.size):
            yield iter([(i, "wide") for i in order[start : start + self.size]])

    def __len__(self) -> int:
        return -(-10 // self.size)


def test_any_batch_sampler_and_any_index() -> None:
    results: list[list[Any]] = []
    for workers in (0, 2):
        loader = DataLoader(Augmented(), batch_sampler=Pairs(4), num_workers=workers)
        before = random.getstate()
        whole = walk(loader, Cursor(), 6)
        assert str(walk(loader, Cursor(0, 2, 2), 4)) == str(whole[2:])
        assert random.getstate() == before
        results.append(rows(whole))
    assert results[0] == results[1]
    assert [row[0] for row in results[0]] != [row[0] for row in sorted(results[0])]
    other_size = rows(walk(DataLoader(Augmented(), batch_sampler=Pairs(5)), Cursor(), 4))
    assert sorted(other_size) == sorted(results[0])


def test_a_loader_without_batches() -> None:
    for workers in (0, 1):
        loader = DataLoader(Augmented(), batch_size=None, shuffle=True, num_workers=workers)
        whole = walk(loader, Cursor(), 20)
        assert sorted(map(tuple, whole[:10])) == sorted(REFERENCE[:10])
        assert walk(loader, Cursor(1, 3, 13), 7) == whole[13:]


def test_a_split_of_a_dataset_draws_example_by_example() -> None:
    subset = Subset(Augmented(), [5, 6, 7, 8])
    assert rows(walk(DataLoader(subset, 3), Cursor(), 2)) == rows(
        walk(DataLoader(subset, 1), Cursor(), 4)
    )


class Many(Augmented):
    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        noise = float(torch.rand(()))
        return [(i, noise) for i in indices]


def test_getitems_draws_once_for_a_batch() -> None:
    for workers in (0, 1):
        whole = walk(DataLoader(Many(), 4, num_workers=workers), Cursor(), 6)
        assert [len(set(batch[1].tolist())) for batch in whole] == [1] * 6
        assert len({float(batch[1][0]) for batch in whole}) == 6
        assert str(walk(DataLoader(Many(), 4), Cursor(0, 1, 1), 5)) == str(whole[1:])


def noisy(examples: list[Any]) -> tuple[torch.Tensor, float]:
    return torch.tensor([example[0] for example in examples]), random.random()


def test_what_a_collate_function_draws_does_not_depend_on_workers() -> None:
    whole = walk(DataLoader(Augmented(), 4, collate_fn=noisy), Cursor(), 6)
    assert len({batch[1] for batch in whole}) == 6
    for workers in (1, 2):
        loader = DataLoader(Augmented(), 4, collate_fn=noisy, num_workers=workers)
        assert str(walk(loader, Cursor(), 6)) == str(whole)
    still: Any = [(i,) for i in range(10)]  # of which the generators are not seeded
    whole = walk(DataLoader(still, 4, collate_fn=noisy), Cursor(), 6)
    assert len({batch[1] for batch in whole}) == 6
    loader = DataLoader(still, 4, collate_fn=noisy, num_workers=2)
    assert str(walk(loader, Cursor(0, 1, 1), 5)) == str(whole[1:])


class Tells(Dataset[Any]):
    """What its worker can see of the user's dataset."""

    epoch = -1
    opened = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple[int, bool, bool]:
        info = get_worker_info()
        return self.epoch, self.opened, info is not None and info.dataset is self


def open_dataset(worker: int) -> None:
    info: Any = get_worker_info()
    info.dataset.opened = True


def test_workers_see_the_users_dataset_and_the_epoch() -> None:
    loader = DataLoader(Tells(), 3, num_workers=1, worker_init_fn=open_dataset)
    epochs = [[column.tolist() for column in batch] for batch in walk(loader, Cursor(4), 2)]
    assert epochs == [[[e] * 3, [True] * 3, [True] * 3] for e in (4, 5)]


def test_the_users_loader_is_left_as_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    for options in ({}, {"generator": generator}, {"num_workers": 1, "persistent_workers": True}):
        loader: Any = DataLoader(Augmented(), 3, shuffle=True, **options)
        before, state = dict(vars(loader)), generator.get_state()
        parts = [dict(vars(part)) for part in (loader.sampler, loader.batch_sampler)]
        walk(loader, Cursor(), 2)
        assert vars(loader) == before
        assert parts == [vars(part) for part in (loader.sampler, loader.batch_sampler)]
        assert torch.equal(generator.get_state(), state)
        del loader


def test_the_global_generators_are_left_alone() -> None:
    np.random.randn()  # so that a normal number waits
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    for options in ({}, {"num_workers": 1}, {"collate_fn": noisy}):
        pairs = Loader(DataLoader(Augmented(), 3, shuffle=True, **options)).iterate()
        next(pairs)
        pairs.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_workers_that_persist_stay_from_one_run_to_the_next() -> None:
    class Where(Dataset[int]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> int:
            import os

            return os.getpid()

    loader = DataLoader(Where(), 2, num_workers=1, persistent_workers=True)
    first, second = walk(loader, Cursor(), 2), walk(loader, Cursor(), 1)
    assert len({int(pid) for batch in first + second for pid in batch}) == 1


class Doubling(DataLoader[Any]):
    """A subclass that gives two batches for each of the sampler's."""

    def __len__(self) -> int:
        return 2 * super().__len__()

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch
            yield [column + 100 for column in batch]


def test_a_subclass_that_iterates_in_its_own_way() -> None:
    loader = Doubling(Augmented(), 4, shuffle=True)
    whole = walk(loader, Cursor(), 12)
    assert str(walk(loader, Cursor(0, 3, 3), 9)) == str(whole[3:])
    assert sorted(rows(whole[0:6:2])) == sorted(REFERENCE[:10])
    assert Loader(loader).about()["exact"] == "by skipping"


class Stream(IterableDataset[float]):
    def __iter__(self) -> Iterator[float]:
        info = get_worker_info()
        for _ in range(6 // (info.num_workers if info else 1)):
            yield float(torch.rand(()))


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_an_iterable_dataset_is_exact_by_skipping(workers: int, persistent: bool) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(Stream(), 2, num_workers=workers, persistent_workers=persistent)

    batches = 3 if workers == 0 else 4
    whole = walk(make(), Cursor(), 3 * batches)
    assert len({float(x) for batch in whole for x in batch}) == 18
    assert str(walk(make(), Cursor(0, 2, 2), 3 * batches - 2)) == str(whole[2:])
    assert str(walk(make(), Cursor(2, 0, 2 * batches), batches)) == str(whole[2 * batches :])
    assert Loader(make()).about()["exact"] == "by skipping"


def test_ahead_in_a_thread() -> None:
    pairs = prefetch(DataLoader(Augmented(), 3)).iterate(Cursor(), 7)
    assert rows([batch for _, batch in itertools.islice(pairs, 4)]) == REFERENCE[:10]
    pairs.close()


def test_its_fingerprint() -> None:
    about = Loader(DataLoader(Augmented(), 3, shuffle=True, num_workers=2, drop_last=True)).about()
    assert about == {
        "kind": "DataLoader",
        "dataset": f"{__name__}.Augmented",
        "sampler": "torch.utils.data.sampler.RandomSampler",
        "examples": 10,
        "batches": 3,
        "batch_size": 3,
        "drop_last": True,
        "shuffle": True,
        "num_workers": 2,
        "index": "batches",
        "exact": "at once",
    }


def test_what_is_not_exact_says_why() -> None:
    unordered = DataLoader(Augmented(), 2, num_workers=1, in_order=False)
    about = Loader(unordered).about()
    assert about["exact"] == "no" and "speed" in about["reason"]


def test_data_that_draws_nothing_is_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("seeded for nothing")

    for name in ("fnloop.data.iterables.seeding", "fnloop.data.seeding.reseed"):
        monkeypatch.setattr(name, refuse)
    data = TensorDataset(torch.arange(6))
    for sampler in (None, [5, 3], RandomSampler(data)):
        assert len(walk(DataLoader(data, 1, sampler=sampler), Cursor(), 2)) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_may_be_read_in_the_middle_of_another(workers: int) -> None:
    """Workers that persist would begin anew: a validation on training data cut its epoch short."""
    options: Any = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(TensorDataset(torch.arange(12)), 2, shuffle=True, **options)
    whole = [batch.tolist() for (batch,) in one_epoch(loader, 7)]
    outer = one_epoch(loader, 7)
    first = [next(outer)[0].tolist() for _ in range(2)]
    inner = [batch.tolist() for (batch,) in one_epoch(loader, 7)]
    assert inner == whole
    assert [*first, *[batch.tolist() for (batch,) in outer]] == whole
