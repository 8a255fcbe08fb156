"""Sources that read from several others: side by side, one after the other, mixed."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl
from fnloop.data.mixing import mix
from fnloop.data.sources import Source, as_source, one_epoch
from fnloop.values.cursor import Cursor
from tests.data.test_sources import MAKERS, Noisy, Shuffled
from tests.data.test_stateful import Reader


def plain(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: plain(part) for name, part in batch.items()}
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def walk(source: Any, cursor: Cursor, steps: int, key: int = 0) -> list[Any]:
    pairs = source.iterate(cursor, key)
    found = [(after, plain(batch)) for after, batch in itertools.islice(pairs, steps)]
    pairs.close()
    return found


def epoch_of(source: Any, epoch: int = 0) -> list[Any]:
    found: list[Any] = []
    for after, batch in source.iterate(Cursor(epoch)):
        found.append(plain(batch))
        if after.epoch > epoch:
            return found
    raise AssertionError


SIZED = [name for name, (make, _) in MAKERS.items() if as_source(make()).batches is not None]
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "shortest": lambda a, b: fl.data.together(a=a, b=b),
    "without names": lambda a, b: fl.data.together(a, b),
    "longest": lambda a, b: fl.data.together(a=a, b=b, mode="longest"),
    "cycle": lambda a, b: fl.data.together(a=a, b=b, mode="cycle"),
    "concat": fl.data.concat,
    "mix": fl.data.mix,
    "weighted": lambda a, b: fl.data.mix(a, b, weights=(0.3, 0.7)),
    "of itself": lambda a, b: fl.data.concat(b, fl.data.mix(a, b), a),
    "grouped": lambda a, b: fl.data.group(fl.data.concat(a, b), 3),
    "limited": lambda a, b: fl.data.limit(fl.data.mix(a, b), 3),
    "of groups": lambda a, b: fl.data.together(a=fl.data.group(a, 2), b=b, mode="cycle"),
    "of limits": lambda a, b: fl.data.together(a=fl.data.limit(a, 2), b=b, mode="cycle"),
    "ahead": lambda a, b: fl.data.prefetch(fl.data.mix(fl.data.prefetch(a), b)),
}


def seen(batch: Any) -> Any:
    return [plain(p) for p in batch.parts] if isinstance(batch, fl.data.Micro) else batch


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("way", WAYS)
def test_resumes_exactly_from_every_cursor(way: str, name: str) -> None:
    make, _ = MAKERS[name]

    def source() -> Source:
        return as_source(WAYS[way](make(), fl.Batches(torch.arange(12), 2, seed=4)))

    def walked(cursor: Cursor, steps: int) -> list[Any]:
        found = walk(source(), cursor, steps, key=9)
        return [(after, str(seen(batch))) for after, batch in found]

    batches = source().batches
    assert batches is not None
    steps = 2 * batches + 2
    whole = walked(Cursor(), steps)
    for i in range(0, steps - 1, 1 if batches < 8 else 3):
        assert walked(whole[i][0], min(5, steps - 1 - i)) == whole[i + 1 : i + 6]
    assert [after.count for after, _ in whole] == [*range(1, steps + 1)]
    assert [after.index == 0 for after, _ in whole][: 2 * batches] == (
        [False] * (batches - 1) + [True]
    ) * 2


# The examples in the documentation of Lightning's CombinedLoader.
A = [[0, 1, 2, 3], [4, 5]]
B = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
COMBINED = {
    "shortest": [{"a": A[0], "b": B[0]}, {"a": A[1], "b": B[1]}],
    "cycle": [{"a": A[0], "b": B[0]}, {"a": A[1], "b": B[1]}, {"a": A[0], "b": B[2]}],
    "longest": [{"a": A[0], "b": B[0]}, {"a": A[1], "b": B[1]}, {"a": None, "b": B[2]}],
    "concat": [*A, *B],
}


@pytest.mark.parametrize("way", COMBINED)
@pytest.mark.lightning("H15", "V10")
def test_an_epoch_is_that_of_a_combined_loader(way: str) -> None:
    a, b = DataLoader(range(6), batch_size=4), DataLoader(range(15), batch_size=5)  # type: ignore
    data = WAYS[way](a, b)
    assert data.batches == len(COMBINED[way])
    assert [plain(batch) for batch in one_epoch(data)] == COMBINED[way]
    assert epoch_of(data, 4)[:2] == COMBINED[way][:2] or way == "cycle"


def test_a_part_that_cycles_gives_all_examples_equally_often() -> None:
    short = fl.Batches(torch.arange(6), 2)  # 3 batches
    data = fl.data.together(a=short, b=[*range(4)], mode="cycle")
    found = [batch for e in range(3) for batch in epoch_of(data, e)]
    assert [batch["b"] for batch in found] == [0, 1, 2, 3] * 3
    its_own = [epoch_of(short, e) for e in range(4)]
    assert [batch["a"] for batch in found] == [*itertools.chain(*its_own)]
    assert its_own[0] != its_own[1]


def test_with_the_shortest_others_begin_anew_with_other_examples() -> None:
    long = fl.Batches(torch.arange(20), 2)
    data = fl.data.together(a=long, b=[1, 2])
    for epoch in range(3):
        assert [batch["a"] for batch in epoch_of(data, epoch)] == epoch_of(long, epoch)[:2]


def test_the_shortest_may_be_one_of_unknown_length() -> None:
    def stream(epoch: int) -> Any:
        return iter(range(epoch + 1))

    data = fl.data.together(a=stream, b=Shuffled(), c=[7] * 3)
    assert data.batches is None
    ends = [after for after, _ in walk(data, Cursor(), 9) if not after.index]
    assert ends == [(1, 0, 1), (2, 0, 3), (3, 0, 6), (4, 0, 9)]  # c ends the last one
    assert [batch["a"] for batch in epoch_of(data, 9)] == [0, 1, 2]


def test_loaders_of_one_length_are_shuffled_apart() -> None:
    loaders = [DataLoader(range(50), 5, shuffle=True) for _ in "ab"]  # type: ignore
    pairs = epoch_of(fl.data.together(a=loaders[0], b=loaders[1]))
    assert all(pair["a"] != pair["b"] for pair in pairs)
    noisy = epoch_of(fl.data.together(a=DataLoader(Noisy(), 5), b=DataLoader(Noisy(), 5)))
    assert noisy[0]["a"] != noisy[0]["b"]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.data(),
    st.integers(0, 3),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=100)
@pytest.mark.lightning("H15")
def test_a_mixture_has_its_proportions_in_each_epoch(
    lengths: list[int], draw: Any, epoch: int, seed: int
) -> None:
    parts = [[(number, i) for i in range(n)] for number, n in enumerate(lengths)]
    whole = epoch_of(mix(*parts, seed=seed), epoch)
    assert sorted(whole) == sorted(itertools.chain(*parts))  # each batch once
    for part in parts:  # and in the part's own order
        assert [batch for batch in whole if batch in part] == part
    weights = draw.draw(
        st.lists(st.floats(1, 9), min_size=len(lengths), max_size=len(lengths)), "weights"
    )
    total = draw.draw(st.integers(9 * len(lengths), 200), "batches")
    mixed = mix(*parts, weights=weights, batches=total, seed=seed)
    found = epoch_of(mixed, epoch)
    counts = Counter(number for number, _ in found)
    for number, weight in enumerate(weights):
        assert abs(counts[number] - weight / sum(weights) * total) < 1
    # Over epochs, every part is gone through in rounds.
    every = [batch for e in range(3) for batch in epoch_of(mixed, e)]
    for number, length in enumerate(lengths):
        own = [i for part, i in every if part == number]
        assert own == [i % length for i in range(len(own))]


def test_a_mixture_is_mixed_well() -> None:
    """Neighbours are independent, and epochs differ: against a chi-squared distribution."""
    mixed = mix(["a"] * 6000, ["b"] * 2000)
    one, two = epoch_of(mixed, 0), epoch_of(mixed, 1)
    assert one != two and one != epoch_of(mix(["a"] * 6000, ["b"] * 2000, seed=1))
    for found in (one, two):
        pairs = Counter(itertools.pairwise(found))
        expected = {
            (x, y): 7999 * p * q
            for x, p in zip("ab", (0.75, 0.25), strict=True)
            for y, q in zip("ab", (0.75, 0.25), strict=True)
        }
        assert sum((pairs[k] - e) ** 2 / e for k, e in expected.items()) < 16.3  # p = 0.001


def test_what_goes_on_from_a_position_of_its_own_is_refused() -> None:
    for part in (iter([1]), (i for i in range(3)), Reader(5), fl.data.prefetch(iter([1]))):
        for way in ("shortest", "concat", "mix"):
            with pytest.raises(TypeError, match=r"part '\w'.*epoch -> iterable"):
                WAYS[way]([1], part)


def test_what_does_not_know_its_length_is_refused_where_that_counts() -> None:
    stream = lambda epoch: iter([1, 2, 3])  # noqa: E731
    for way in ("longest", "cycle", "mix"):
        with pytest.raises(ValueError, match=r"does not know.*fl\.data\.limit\(data, n\)"):
            WAYS[way](stream, [1])
    with pytest.raises(ValueError, match=r"part '0' does not know"):
        fl.data.concat(stream, [1])
    last = fl.data.concat([0], stream)
    assert last.batches is None and epoch_of(last, 2) == [0, 1, 2, 3]
    assert epoch_of(fl.data.mix(fl.data.limit(stream, 2), [9]), 1).count(1) == 1


def test_a_length_that_is_wrong_is_found() -> None:
    class Wrong:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return iter([1, 2])

    for way in ("longest", "concat", "mix"):
        with pytest.raises(ValueError, match=r"has said that an epoch has 3 batches.*after 2"):
            epoch_of(WAYS[way](Wrong(), [1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.data.together(), "together was given no data"),
        (lambda: fl.data.concat(), "concat was given no data"),
        (lambda: fl.data.mix(), "mix was given no data"),
        (lambda: fl.data.together(a=[1], mode="max_size"), r"'shortest', 'longest', 'cycle'"),  # type: ignore
        (lambda: fl.data.mix([1], [2], weights=(1,)), r"for each of its 2 parts"),
        (lambda: fl.data.mix([1], [2], weights=(1, 0)), r"above 0"),
        (lambda: fl.data.mix([1], [2], weights=(1, float("nan"))), r"above 0"),
        (lambda: fl.data.mix([1], [2], weights=(1, 99)), r"part 0 no batch in an epoch of 2"),
        (lambda: fl.data.mix([1], batches=0), r"mix\(batches=\.\.\.\)"),
        (lambda: fl.data.mix([1], weight=[1]), "Did you mean weights="),  # type: ignore
    ],
)
def test_other_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_the_order_of_the_data() -> None:
    parts = [fl.Batches(torch.arange(4), 2, shuffle=False), [torch.tensor([9])]]
    assert [b.tolist() for b in one_epoch(fl.data.concat(*parts), ordered=True)] == [
        [0, 1],
        [2, 3],
        [9],
    ]
    with pytest.raises(ValueError, match="shuffles"):
        list(one_epoch(fl.data.concat(fl.Batches(torch.arange(4), 2), [1]), ordered=True))
    with pytest.raises(ValueError, match=r"mix shuffles its parts.*fl\.data\.concat"):
        list(one_epoch(fl.data.mix(*parts), ordered=True))
    with pytest.raises(ValueError, match=r"repeats parts"):
        list(one_epoch(WAYS["cycle"](*parts), ordered=True))


def test_a_fingerprint_tells_the_parts_apart() -> None:
    tensors = fl.Batches(torch.arange(4), 2)
    about = fl.data.together(a=tensors, b=[1]).about()
    assert about["exact"] == "at once" and about["a.batch_size"] == 2 and about["b.kind"] == "list"
    about = WAYS["shortest"](tensors, lambda epoch: [1]).about()
    assert about["exact"] == "by skipping"
    loader = DataLoader(range(4), 2, num_workers=1, in_order=False)  # type: ignore
    about = fl.data.concat(tensors, loader).about()
    assert about["exact"] == "no" and about["reason"].startswith("1: in_order=False")
    assert re.match(r"mix\(2 \+ 1 batches", repr(fl.data.mix(tensors, [1])))


def test_a_data_set_that_ranks_divide_themselves_is_found_inside() -> None:
    from torch.utils.data import DistributedSampler

    from fnloop.data.divided import refuse_divided

    dataset = TensorDataset(torch.arange(8))
    loader = DataLoader(dataset, 2, sampler=DistributedSampler(dataset, 2, 0))
    for data in (fl.data.together(a=[1], b=loader), fl.data.mix([1], loader)):
        with pytest.raises(ValueError, match="DistributedSampler"):
            refuse_divided(data)


def test_two_losses_of_two_data_sets_and_a_resumed_run(tmp_path: Any) -> None:
    """Labelled and unlabelled batches of unequal size: a total and a weight for both."""
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=make), torch.randint(3, (40,), generator=make)
    free = torch.randn(90, 4, generator=make)

    def loss(model: Any, batch: Any) -> Any:
        x, y = batch["labelled"]
        own = F.cross_entropy(model(x), y, reduction="sum")
        p = model(batch["free"]).softmax(1)
        entropy = -(p * p.log()).sum(1).mean()
        return fl.Mean(own + 0.1 * entropy * len(x), len(x))

    def scalar(model: Any, batch: Any) -> Any:
        return model(batch["free"]).mean()

    def data() -> Any:
        return fl.data.together(
            labelled=fl.Batches((x, y), 8), free=fl.Batches(free, 20, seed=1), mode="cycle"
        )

    def step_of(loss: Any) -> Any:
        return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.05)))

    step = step_of(loss)
    start = step.init(lambda: nn.Linear(4, 3), seed=0)
    whole, history = fl.fit(step, start, data(), epochs=20)
    assert int(whole.step) == 20 * 5 and history["loss"][-1] < history["loss"][0]
    for stop in (1, 7, 33):
        fl.fit(step, start, data(), steps=stop, callbacks=[fl.checkpoint(tmp_path / str(stop))])
        again = step.init(lambda: nn.Linear(4, 3), seed=5)
        resumed, _ = fl.fit(step, again, data(), epochs=20, resume=tmp_path / str(stop))
        assert fl.tree_equal(resumed, whole)
    with pytest.raises(ValueError, match=r"free has 20, labelled/0 has 8.*fl\.Mean"):
        fl.fit(step_of(scalar), start, data(), epochs=1)


def test_batches_of_unequal_size_are_accumulated_in_groups() -> None:
    def loss(model: Any, batch: Any) -> Any:
        a, b = model(batch["a"]), model(batch["b"])
        return fl.Mean(a.square().sum() + len(a) * b.mean(), len(a))

    x, free = torch.randn(10, 4), torch.randn(30, 4)
    data = fl.data.together(a=fl.Batches(x, 3, shuffle=False), b=fl.Batches(free, 8, shuffle=False))
    step = fl.pipe(loss, fl.grad, fl.accumulate(2))
    state = step.init(nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"a has 3, b has 8.*fl\.data\.Micro"):
        step(state, next(iter(one_epoch(data))))
    _, grads = step(state, next(iter(one_epoch(fl.data.group(data, 4)))))
    model, total = fl.to_module(state), torch.zeros(())
    for i in range(4):
        a, b = model(x[3 * i : 3 * i + 3]), model(free[8 * i : 8 * i + 8])
        total = total + a.square().sum() + len(a) * b.mean()
    (total / 10).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads.mean[name], p.grad)


def test_parts_without_names_give_tuples() -> None:
    both = fl.data.together(["a0", "a1"], ["b0", "b1"])
    assert epoch_of(both) == [("a0", "b0"), ("a1", "b1")]
    with pytest.raises(ValueError, match="2 without, and 'c'"):
        fl.data.together([1], [2], c=[3])
