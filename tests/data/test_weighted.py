"""Examples that are drawn by weight, with replacement."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import fnloop as fl
from fnloop.data.sources import one_epoch
from fnloop.data.weighted import uniform
from fnloop.values.cursor import Cursor


def walk(source: Any, cursor: Cursor, steps: int) -> list[Any]:
    pairs = itertools.islice(source.iterate(cursor), steps)
    return [(after, batch.tolist()) for after, batch in pairs]


def drawn(weights: Any, epochs: int = 1, **options: Any) -> torch.Tensor:
    data = fl.Batches(torch.arange(len(weights)), 64, weights=weights, **options)
    found = [batch for _, batch in itertools.islice(data.iterate(), epochs * len(data))]
    return torch.cat(found)


def test_the_random_numbers_are_those_of_splitmix64() -> None:
    """The first outputs for the seed 1234567, as published with other implementations."""
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert (uniform(1234567, 0, 5) * 2.0**53).astype(np.uint64).tolist() == [x >> 11 for x in known]
    assert uniform(1234567, 3, 5).tolist() == uniform(1234567, 0, 5)[3:].tolist()
    assert uniform(-1, 0, 3).tolist() == uniform((1 << 64) - 1, 0, 3).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_examples_come_in_proportion_to_their_weights(seed: int) -> None:
    weights = torch.rand(200, generator=torch.Generator().manual_seed(3)) + 0.05
    found = drawn(weights, epochs=100, seed=seed)
    counts, expected = torch.bincount(found, minlength=200), weights / weights.sum() * len(found)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 140 < chi_squared < 268  # 199 degrees of freedom: p = 0.0005 on either side


def test_draws_are_independent_and_change_with_epoch_and_seed() -> None:
    found = drawn(torch.ones(5000), epochs=2)
    one, two = found[:5000], found[5000:]
    for other in (two, drawn(torch.ones(5000), seed=1)):
        same = int((one == other).sum())
        assert same < 9  # one is expected
    # With replacement, 1 / e of the examples are missing: 1839 of 5000, give or take 22.
    assert abs(5000 - len(one.unique()) - 5000 / np.e) < 90
    low = (one < 2500).float()
    assert abs(float((low[1:] * low[:-1]).mean()) - 0.25) < 0.02


def test_one_of_weight_zero_never_comes() -> None:
    weights = torch.zeros(300)
    weights[[7, 299]] = torch.tensor([1.0, 3.0])
    assert set(drawn(weights, epochs=3).tolist()) == {7, 299}
    assert set(drawn([0, 0, 2.5, 0]).tolist()) == {2}


@pytest.mark.parametrize("drop_last", [False, True])
def test_resumes_from_every_cursor_and_at_another_batch_size(drop_last: bool) -> None:
    def data(size: int) -> fl.Batches:
        weights = [0.1, 1, 2, 0.5, 3, 1, 1, 4, 0.3, 1, 1]
        return fl.Batches(torch.arange(11), size, weights=weights, seed=2, drop_last=drop_last)

    whole = walk(data(4), Cursor(), 11)
    for i, (after, _) in enumerate(whole[:-1]):
        assert walk(data(4), after, 10 - i) == whole[i + 1 :]
        assert data(4).numbers(after.tensor()).tolist() == whole[i + 1][1]
    singles = [x for _, (x,) in walk(data(1), Cursor(), 8)]
    assert singles == [x for _, batch in whole[:2] for x in batch]
    assert (
        data(4).about()["weights"]
        != fl.Batches(torch.arange(11), 4, weights=[1] * 11).about()["weights"]
    )


def test_an_example_that_comes_again_is_augmented_anew() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, i: int) -> Any:
            return i, torch.rand((), dtype=torch.float64)

    def epoch(size: int) -> list[tuple[int, float]]:
        data = fl.Batches(Noisy(), size, weights=[1.0, 9.0] + [0.1] * 28)
        return [
            pair for i, x in one_epoch(data) for pair in zip(i.tolist(), x.tolist(), strict=True)
        ]

    found = epoch(7)
    assert found == epoch(30)  # of the position in the epoch, not of the batch
    assert len({x for _, x in found}) == 30 > len({i for i, _ in found})


def test_the_numbers_of_the_examples_are_known_for_each_order() -> None:
    columns = torch.arange(50)
    for data in (
        fl.Batches(columns, 8),
        fl.Batches(columns, 8, shuffle=False),
        fl.Batches(columns, 8, buckets=[i % 3 for i in range(50)]),
        fl.Batches(columns, 8, drop_last=True),
    ):
        for cursor in ((0, 0, 0), (0, 40, 5), (2, 48, 9)):
            place = torch.tensor(cursor)
            assert torch.equal(data.numbers(place), data.at(place)[1])


def test_rare_classes_come_as_often_as_others_here_as_in_a_torch_loader() -> None:
    y = (torch.arange(2000) % 20 == 0).long()  # one in twenty
    weights = 1.0 / torch.bincount(y)[y]
    torch.manual_seed(0)
    sampler = WeightedRandomSampler(weights.tolist(), 2000)
    for data in (
        fl.Batches((y,), 50, weights=weights),
        DataLoader(TensorDataset(y), 50, sampler=sampler),
    ):
        share = torch.cat([batch for (batch,) in one_epoch(data, key=1)]).float().mean()
        assert abs(float(share) - 0.5) < 0.04


def test_a_run_on_drawn_examples_resumes_to_the_bit(tmp_path: Any) -> None:
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=make), torch.randint(3, (60,), generator=make)
    step = fl.pipe(
        lambda m, b: F.cross_entropy(m(b[0]), b[1]), fl.grad, fl.update(fl.optim.adamw(0.05))
    )

    def data() -> Any:
        return fl.data.prefetch(fl.Batches((x, y), 8, weights=1.0 / torch.bincount(y)[y]))

    start = step.init(lambda: nn.Linear(4, 3), seed=0)
    whole, _ = fl.fit(step, start, data(), steps=20)
    fl.fit(step, start, data(), steps=11, callbacks=[fl.checkpoint(tmp_path)])
    resumed, _ = fl.fit(
        step, step.init(lambda: nn.Linear(4, 3), seed=4), data(), steps=20, resume=tmp_path
    )
    assert fl.tree_equal(resumed, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0] * 3}, r"each of the 4 examples.*got list of 3.*per_class\[labels\]"),
        ({"weights": torch.ones(2, 2)}, r"got f32\[2,2\]"),
        ({"weights": ["a"] * 4}, "takes a number for each"),
        ({"weights": [1, -1, 1, 1]}, "example 1 is -1"),
        ({"weights": [1, 1, float("inf"), 1]}, "example 2 is inf.*without examples"),
        ({"weights": [1, 1, float("nan"), 1]}, "example 2 is nan"),
        ({"weights": [0] * 4}, "all are 0"),
        ({"weights": [1] * 4, "shuffle": False}, r"shuffle=False asks for another order"),
        ({"weights": [1] * 4, "buckets": [1] * 4}, r"buckets= asks for another order"),
    ],
)
def test_other_weights_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.Batches(torch.arange(4), 2, **options)


def test_drawn_examples_have_no_order() -> None:
    with pytest.raises(ValueError, match="draws examples by weight"):
        list(one_epoch(fl.Batches(torch.arange(4), 2, weights=[1] * 4), ordered=True))
