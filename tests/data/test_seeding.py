from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from fnloop._torch.random import seeded
from fnloop.data.seeding import Examples, draws, example_seed, reseed, seeding, takes_many


def draw() -> tuple[float, float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn())


def state() -> list[str]:
    return [str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state())]


def test_a_block_draws_from_its_seed_and_leaves_the_generators_alone() -> None:
    before = state()
    results = []
    for seed in (5, 6, 5, 5 + (1 << 40), -5):
        with seeding(seed):
            results.append(draw())
        assert state() == before
        draw_again = draw()  # what happens in between does not matter
        assert draw_again != results[-1]
        before = state()
    assert results[0] == results[2]
    one_by_one = [set(column) for column in zip(*results, strict=True)]
    # Of the four seeds, torch takes the low 32 bits, Python all, numpy the high ones.
    assert [len(column) for column in one_by_one] == [3, 4, 3, 3]


def test_a_block_that_fails_leaves_the_generators_alone() -> None:
    before = state()
    with pytest.raises(KeyError), seeding(3):
        draw()
        raise KeyError
    assert state() == before
    with seeded(0):  # the lock is free again
        free = threading.Thread(target=lambda: None)
        free.start()
        free.join(1)


def test_the_generators_draw_different_numbers_from_one_seed() -> None:
    for seed in (0, 3):
        with seeding(seed << 32 | seed + 1):
            raw = [int(torch.empty((), dtype=torch.int64).random_(0, 1 << 32)) for _ in range(9)]
            raw += [int(x) for x in np.random.randint(0, 1 << 32, 9)]
            raw += [random.getrandbits(32) for _ in range(9)]
        assert len(set(raw)) == 27


def test_seeds_of_indices() -> None:
    same = [3, np.int64(3), torch.tensor(3), (3,), [3]]
    assert len({example_seed(1, index) for index in same}) == 1
    different: list[Any] = [3, 4, "3", (3, 4), (4, 3), (3, "a"), (3, (4, 5)), -3]
    seeds = {example_seed(seed, index) for index in different for seed in (1, 2)}
    seeds |= {example_seed(1, 3, times) for times in (1, 2)}
    seeds |= {example_seed(1, 2.5, 0, place) for place in (0, 1)}
    assert len(seeds) == 2 * len(different) + 4
    assert example_seed(1, {"a": 1}, 0, 7) == example_seed(1, None, 0, 7)  # by place


class Noise:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> tuple[float, ...]:
        return draw()


class Many(Noise):
    def __getitems__(self, indices: Sequence[int]) -> list[float]:
        return [float(torch.rand(())) for _ in indices]


def test_examples_are_taken_each_by_itself() -> None:
    examples = Examples(Noise())
    together = examples.take([0, 3, 4], 7)
    assert examples.take([4, 0], 7) == [together[2], together[0]]
    assert examples.one(3, 7) == together[1]
    assert examples.take([3], 8)[0] != together[1]
    again = examples.take([3, 3], 7, times=(0, 1))
    assert again[0] == together[1] != again[1] == examples.one(3, 7, 1)


def test_getitems_is_seeded_once() -> None:
    examples = Examples(Many())
    assert examples.take([2, 3], 7) == examples.take([2, 4], 7) != examples.take([3, 2], 7)


def test_what_draws_and_what_is_taken_together() -> None:
    tensors = TensorDataset(torch.zeros(3))
    for dataset in ([1], range(3), tensors, Subset(tensors, [0]), ConcatDataset([tensors])):
        assert not draws(dataset)
    for dataset in (Noise(), Subset(Noise(), [0]), ConcatDataset([tensors, Noise()])):  # pyright: ignore
        assert draws(dataset)
    assert takes_many(Many()) and takes_many(Subset(Many(), [0]))  # pyright: ignore
    assert not takes_many(Noise()) and not takes_many(Subset(Noise(), [0]))  # pyright: ignore


def test_seeding_costs_microseconds() -> None:
    def block() -> None:
        with seeding(3):
            pass

    def fastest(function: Any) -> float:
        times = []
        for _ in range(300):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        return min(times)

    assert fastest(lambda: reseed(123456789)) < 30e-6  # 6 measured
    assert fastest(block) < 45e-6  # 9 measured; numpy's own functions take 165, Python's 10
