from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import fnloop as fl
from fnloop.data.buckets import BucketOrder, BucketSampler
from fnloop.data.resumed import resumed_index
from fnloop.data.sources import as_source
from fnloop.values.cursor import Cursor

NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def grouped(buckets: Any, size: int, **options: Any) -> fl.Batches:
    return fl.Batches(torch.arange(len(buckets)), size, buckets=buckets, **options)


def epoch_of(data: Any, epoch: int = 0) -> list[list[int]]:
    found: list[list[int]] = []
    for after, batch in as_source(data).iterate(Cursor(epoch)):
        found.append(batch.tolist())
        if after.epoch > epoch:
            return found
    raise AssertionError


@given(NUMBERS, st.integers(1, 20), st.booleans(), st.integers(0, 3), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_each_example_once_an_epoch(
    buckets: list[int], size: int, shuffle: bool, epoch: int, seed: int
) -> None:
    data = grouped(buckets, size, shuffle=shuffle, seed=seed)
    batches = epoch_of(data, epoch)
    assert sorted(itertools.chain(*batches)) == [*range(len(buckets))]
    assert len(batches) == len(data) == -(-len(buckets) // size)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(data) - 1)
    assert epoch_of(grouped(torch.tensor(buckets), size, shuffle=shuffle, seed=seed), epoch) == (
        batches
    )
    sampler = BucketSampler(buckets, size, shuffle, seed)
    sampler.set_epoch(epoch)
    assert list(sampler) == batches and len(sampler) == len(batches)
    if len(buckets) >= size:
        full = [batch for batch in batches if len(batch) == size]
        assert (
            epoch_of(grouped(buckets, size, shuffle=shuffle, seed=seed, drop_last=True), epoch)
            == full
        )


@given(NUMBERS, st.integers(1, 20), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_few_batches_have_several_buckets(buckets: list[int], size: int, seed: int) -> None:
    batches = epoch_of(grouped(buckets, size, seed=seed))
    ranges = [(min(b), max(b)) for b in ([buckets[i] for i in batch] for batch in batches)]
    ranges.sort()
    # Sorted, the batches follow one another: a bucket ends in one batch at most.
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(ranges))
    assert sum(low < high for low, high in ranges) <= len(set(buckets)) - 1


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_order_is_that_of_the_definition(size: int, shuffle: bool) -> None:
    """Stretches, each sorted by bucket and cut, written out one by one."""
    n, seed, epoch = 8000, 5, 2
    buckets = torch.randint(4, (n,), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = fl.data.permute(torch.arange(n), n, seed, epoch).tolist()
    found = epoch_of(grouped(buckets, size, shuffle=shuffle, seed=seed), epoch)
    count = -(-n // size)
    stretches = count // 100
    assert stretches > 1
    for k in range(stretches):
        first, last = k * count // stretches, (k + 1) * count // stretches
        assert 100 <= last - first < 200
        positions = range(first * size, min(last * size, n))
        members = sorted(
            (shuffled[i] if shuffle else i for i in positions), key=buckets.__getitem__
        )
        rest = len(members) % size
        here = found[first:last]
        if not shuffle:
            assert list(itertools.chain(*here)) == members
            continue
        smaller = here.pop() if rest else []
        without = [i for i in members if i not in smaller]
        cut = [without[i : i + size] for i in range(0, len(without), size)]
        assert sorted(here) == sorted(cut) and here != cut
        place = members.index(smaller[0]) if rest else 0
        assert members[place : place + rest] == smaller


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    buckets = [i % 3 for i in range(90)]
    orders = [
        epoch_of(grouped(buckets, 10, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({str(order) for order in orders}) == 4
    together = [frozenset(batch) for order in orders for batch in order]
    assert len(set(together)) == len(together)  # others meet
    kinds = [[buckets[batch[0]] for batch in order] for order in orders]
    assert all(kind != sorted(kind) for kind in kinds)


def test_the_smaller_batch_is_of_any_bucket() -> None:
    buckets = [i // 10 for i in range(41)]
    data = grouped(buckets, 4, drop_last=True)
    left = [({*range(41)} - {*itertools.chain(*epoch_of(data, e))}).pop() for e in range(60)]
    assert len(Counter(buckets[i] for i in left)) >= 4


@given(NUMBERS, st.integers(1, 20), st.data())
@settings(deadline=None, max_examples=60)
def test_resumes_at_every_step(buckets: list[int], size: int, data: Any) -> None:
    pairs = list(itertools.islice(grouped(buckets, size).iterate(), 12))
    stop = data.draw(st.integers(0, 10))
    after, _ = pairs[stop]
    again = itertools.islice(grouped(buckets, size).iterate(after), 11 - stop)
    assert str(list(again)) == str(pairs[stop + 1 :])
    cursor, batch = grouped(buckets, size).at(after.tensor())
    assert (Cursor.of(cursor), batch.tolist()) == (pairs[stop + 1][0], pairs[stop + 1][1].tolist())


def test_any_part_of_an_epoch_is_a_part_of_the_whole() -> None:
    buckets = torch.arange(1000) % 7
    order = BucketOrder(buckets, 2, True, 3)  # five stretches
    (whole,) = order.at(1, 0, 1000)
    assert torch.equal(whole.sort().values, torch.arange(1000))
    for start, stop in ((0, 1), (199, 203), (150, 850), (999, 1000)):
        assert torch.equal(
            BucketOrder(buckets, 2, True, 3).at(1, start, stop)[0], whole[start:stop]
        )


def classifier() -> Any:
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))


def mean_score(model: Any, padded: Any) -> Any:
    batch, mask, weight = padded
    weight = weight[:, None] * mask
    return fl.Mean((weight * model(batch).square().sum(-1)).sum(), weight.sum())


SEQUENCES = [torch.arange(1 + 3 * i % 8) for i in range(22)]
PAD = fl.data.pad((2, 4, 8), 0, batch_size=4)
BUCKETS = PAD.buckets([len(each) for each in SEQUENCES])


def sources() -> dict[str, Any]:
    sampler = BucketSampler(BUCKETS, 4, seed=2)
    loader: Any = SEQUENCES
    return {
        "batches": fl.Batches(SEQUENCES, 4, collate=PAD, buckets=BUCKETS),
        "prefetch": fl.data.prefetch(fl.Batches(SEQUENCES, 4, collate=PAD, buckets=BUCKETS)),
        "loader": DataLoader(loader, batch_sampler=sampler, collate_fn=PAD),
        "workers": DataLoader(loader, batch_sampler=sampler, collate_fn=PAD, num_workers=1),
    }


@pytest.mark.parametrize("kind", ["batches", "prefetch", "loader"])
def test_a_run_resumes_to_the_bit_at_every_step(kind: str) -> None:
    step = fl.pipe(mean_score, fl.grad, fl.accumulate(2), fl.update(fl.optim.adamw(1e-2)))
    state = step.init(classifier, seed=0)
    fl.testing.check_resumes(step, state, sources()[kind], steps=13, at=range(13))


def test_a_loader_has_the_order_of_batches_in_every_epoch() -> None:
    kinds = sources()
    here = fl.Batches(SEQUENCES, 4, seed=2, collate=PAD, buckets=BUCKETS)
    expected = list(itertools.islice(here.iterate(), 15))
    for kind in ("loader", "workers"):
        found = list(itertools.islice(as_source(kinds[kind]).iterate(), 15))
        for (after, batch), (other, wanted) in zip(found, expected, strict=True):
            assert (after.epoch, after.count) == (other.epoch, other.count)
            assert fl.tree_equal(batch, wanted)


def test_predict_refuses_buckets() -> None:
    state = fl.pipe(mean_score, fl.grad).init(classifier, seed=0)
    for data in (
        grouped([0, 1], 1, shuffle=False),
        fl.data.prefetch(grouped([0, 1], 1, shuffle=False)),
    ):
        with pytest.raises(ValueError, match=r"puts buckets together.*leave buckets= out"):
            list(fl.predict(lambda model, batch: batch, state, data))
    with pytest.raises(ValueError, match="BucketSampler"):
        list(fl.predict(lambda model, batch: batch, state, sources()["loader"]))


@pytest.mark.parametrize("loader", [False, True])
def test_another_batch_size_puts_others_together_and_says_so(loader: bool) -> None:
    def source(size: int) -> Any:
        if loader:
            data: Any = SEQUENCES
            sampler = BucketSampler(BUCKETS, size)
            return as_source(DataLoader(data, batch_sampler=sampler, collate_fn=list))
        return fl.Batches(SEQUENCES, size, collate=list, buckets=BUCKETS)

    after, _ = next(source(4).iterate(Cursor(1, 0, 6)))
    cursor, sentence = resumed_index(after, source(4).about(), source(3).about())
    assert cursor == (1, 1 if loader else 4, 7)
    assert sentence is not None and "The batch size was 4 and is 3, which puts other" in sentence
    next(source(3).iterate(cursor))
    assert resumed_index(Cursor(2, 0, 12), source(4).about(), source(3).about())[1] is None
    assert resumed_index(after, source(4).about(), source(4).about()) == (after, None)


def test_the_fingerprint_tells_buckets_apart() -> None:
    one, other = grouped([0, 1, 1], 2).about(), grouped([0, 0, 1], 2).about()
    assert one["buckets"] != other["buckets"] and "buckets" not in fl.Batches([1], 1).about()
    about = as_source(sources()["loader"]).about()
    assert about["batch_size"] == 4 and about["seed"] == 2 and about["exact"] == "at once"
    assert about["buckets"] == sources()["batches"].about()["buckets"]


@pytest.mark.parametrize(
    ("buckets", "error", "message"),
    [
        ([0, 1], ValueError, "buckets has 2 numbers, and there are 3 examples"),
        ([0.0, 1.0, 2.0], TypeError, r"bucket of each example, .* got f32\[3\]"),
        ([True, False, True], TypeError, r"got bool\[3\]"),
        ("abc", TypeError, "got 'abc'"),
    ],
)
def test_buckets_that_do_not_fit(buckets: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fl.Batches(torch.arange(3), 2, buckets=buckets)
    if error is TypeError:
        with pytest.raises(error, match=message):
            BucketSampler(buckets, 2)


def test_a_sampler_without_a_batch() -> None:
    for buckets, drop_last in (([], False), ([1, 2], True)):
        with pytest.raises(ValueError, match="There is no batch"):
            BucketSampler(buckets, 3, drop_last=drop_last)


def test_it_costs_microseconds() -> None:
    import time

    data = torch.arange(200_000)
    pairs = fl.Batches(data, 64, buckets=data % 50).iterate()
    began = time.process_time()
    for _ in range(2000):
        next(pairs)
    assert (time.process_time() - began) / 2000 < 300e-6
