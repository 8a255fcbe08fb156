from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from fnloop.data.permutation import permute, permute_epochs
from fnloop.values.key import fold

SIZES = [*range(1, 130), 255, 256, 257, 1000, 4095, 4096, 4097, 65535, 65537, 100_003]


def order(n: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return permute(torch.arange(n), n, seed, epoch)


@pytest.mark.parametrize("seed", [0, -1, 2**63])
def test_is_a_bijection_for_every_size(seed: int) -> None:
    for n in SIZES:
        assert torch.equal(order(n, seed, epoch=3).sort().values, torch.arange(n)), n


def test_each_position_is_computed_by_itself() -> None:
    whole = order(1000, 7, 2)
    some = torch.tensor([[3, 999], [0, 3]])
    assert torch.equal(permute(some, 1000, 7, 2), whole[some])


@pytest.mark.parametrize("n", [1, 2, 10, 257, 1000])
def test_several_epochs_at_once_are_each_alone(n: int) -> None:
    positions = torch.arange(n - n % 2).view(2, -1)
    together = permute_epochs(positions, n, 7, range(3, 8))
    assert torch.equal(together, torch.stack([permute(positions, n, 7, e) for e in range(3, 8)]))


@pytest.mark.parametrize(("n", "a", "b", "rounds"), [(10, 4, 3, 16), (1001, 32, 32, 8)])
def test_the_order_is_that_of_the_formula_one_by_one(n: int, a: int, b: int, rounds: int) -> None:
    """Black and Rogaway's network in Python's own integers."""
    seed, epoch, mask = 3, 2, (1 << 64) - 1

    def mix(value: int) -> int:
        for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
            value = value * multiplier & mask
            value ^= value >> 32
        return value & 0xFFFFFFFF

    def once(value: int) -> int:
        left, right = divmod(value, b)
        for r in range(rounds):
            key = fold(seed, epoch, r) & mask
            if r % 2:
                right = (right + (mix(left ^ key) * b >> 32)) % b
            else:
                left = (left + (mix(right ^ key) * a >> 32)) % a
        return left * b + right

    expected = []
    for position in range(n):
        value = once(position)
        while value >= n:
            value = once(value)
        expected.append(value)
    assert order(n, seed, epoch).tolist() == expected
    few = torch.arange(3)  # too few for tables
    assert permute(few, n, seed, epoch).tolist() == expected[:3]


def test_does_not_change_its_input() -> None:
    positions = torch.arange(100)
    permute(positions, 100, 0)
    assert torch.equal(positions, torch.arange(100))


def test_huge_range_stays_in_range() -> None:
    n = 2**62
    values = permute(torch.tensor([0, 1, n - 1]), n, 5)
    assert len(set(values.tolist())) == 3
    assert int(values.min()) >= 0 and int(values.max()) < n


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    n = 10_000
    orders = [order(n, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders.append(torch.arange(n))
    for i, a in enumerate(orders):
        for b in orders[:i]:
            # The number of agreements of two random orders is Poisson with mean 1.
            assert int((a == b).sum()) < 10
            assert abs(float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])) < 0.05


def chi_square_z(counts: np.ndarray, expected: float, degrees: int) -> float:
    """The statistic in standard deviations from its mean."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("n", [5, 31, 270])
def test_every_value_is_as_likely_at_every_position(n: int) -> None:
    seeds = 2000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), order(n, seed).numpy()] += 1
    assert abs(chi_square_z(counts, seeds / n, (n - 1) ** 2)) < 4


def test_neighbours_land_independently() -> None:
    n, bins = 40_000, 8
    x = order(n, seed=11).numpy()
    counts = np.histogram2d(x[:-1], x[1:], bins=bins, range=[[0, n], [0, n]])[0]
    assert abs(chi_square_z(counts, (n - 1) / bins**2, bins**2 - 1)) < 4


def test_all_orders_of_four_occur_equally() -> None:
    seen = Counter(tuple(order(4, seed).tolist()) for seed in range(2400))
    assert len(seen) == 24
    assert abs(chi_square_z(np.array(list(seen.values())), 100, 23)) < 4
