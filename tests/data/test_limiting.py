"""Epochs of a few batches, of any data."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fnloop as fl
from fnloop.data.sources import Source, as_source, one_epoch
from fnloop.values.cursor import Cursor
from tests.data.test_sources import MAKERS, Noisy, walk
from tests.data.test_stateful import Reader


def data() -> fl.Batches:
    return fl.Batches(torch.arange(10), batch_size=2)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_resumes_exactly_from_every_cursor(name: str, same: bool) -> None:
    make, batches = MAKERS[name]
    n = max(1, batches - 1)

    def source() -> Source:
        return fl.data.limit(make(), n, same=same)

    steps = 3 * n + 1
    whole = walk(source(), Cursor(), steps, key=9)
    for i in range(steps - 1):
        assert walk(source(), whole[i][0], steps - 1 - i, key=9) == whole[i + 1 :]
    ends = [after for after, _ in whole if not after.index]
    assert ends[:3] == [(1, 0, n), (2, 0, 2 * n), (3, 0, 3 * n)]
    first, second = whole[:n], whole[n : 2 * n]
    alike = [batch for _, batch in first] == [batch for _, batch in second]
    assert alike if same else True


def test_each_epoch_has_other_batches_unless_they_are_to_be_the_same() -> None:
    def epochs(source: Any) -> list[Any]:
        batches = [batch for _, batch in walk(source, Cursor(), 6)]
        return [batches[i : i + 2] for i in (0, 2, 4)]

    one, two, three = epochs(fl.data.limit(data(), 2))
    assert one != two != three != one
    assert one == [batch for _, batch in walk(data(), Cursor(), 2)]
    assert epochs(fl.data.limit(data(), 2, same=True)) == [one, one, one]
    augmented = epochs(fl.data.limit(DataLoader(Noisy(), 3, shuffle=True), 2, same=True))
    assert augmented[0] == augmented[1] == augmented[2]


@pytest.mark.lightning("T14")
@pytest.mark.parametrize(
    ("n", "batches"),
    [(1, 1), (1.0, 5), (0.4, 2), (0.59, 2), (0.6, 3), (0.01, 1), (7, 5), (np.int64(2), 2)],
)
def test_an_int_is_a_count_and_a_float_a_fraction(n: Any, batches: int) -> None:
    limited = fl.data.limit(data(), n)
    assert limited.batches == batches
    assert len(list(one_epoch(limited))) == batches


def test_fractions_are_decimal() -> None:
    assert fl.data.limit([0] * 100, 0.29).batches == 29  # 28.999999999999996 in binary


@pytest.mark.parametrize("n", [0, -1, 0.0, -0.5, 2.0, float("nan"), True, "3", None])
def test_other_limits_are_refused(n: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"limit.*takes a"):
        fl.data.limit(data(), n)


def test_a_fraction_needs_a_length() -> None:
    stream = lambda epoch: iter([1, 2, 3])  # noqa: E731
    with pytest.raises(ValueError, match="does not know how many batches"):
        fl.data.limit(stream, 0.5)
    assert list(one_epoch(fl.data.limit(stream, 2))) == [1, 2]


def test_what_it_wraps_can_be_looked_through() -> None:
    limited = fl.data.limit(fl.Batches(torch.arange(4.0), 2, shuffle=False), 1)
    assert fl.data.limit(limited, 1.0).batches == 1
    assert limited.about()["limit"] == 1 and limited.about()["examples"] == 4
    assert [batch.tolist() for batch in one_epoch(limited, ordered=True)] == [[0, 1]]
    with pytest.raises(ValueError, match="shuffle"):
        list(one_epoch(fl.data.limit(data(), 1), ordered=True))
    assert repr(fl.data.limit([1, 2], 1, same=True)).endswith("1, same=True)")
    ahead = fl.data.prefetch(fl.data.limit(data(), 2))
    assert walk(ahead, Cursor(), 5) == walk(fl.data.limit(data(), 2), Cursor(), 5)
    behind = fl.data.limit(fl.data.prefetch(data()), 2)
    assert walk(behind, Cursor(), 5) == walk(fl.data.limit(data(), 2), Cursor(), 5)


def test_a_lower_limit_than_where_a_run_stands_ends_the_epoch() -> None:
    [(after, _)] = walk(fl.data.limit(data(), 2), Cursor(3, 6, 18), 1)
    assert after == (4, 2, 19)


def test_an_iterator_goes_on() -> None:
    limited = fl.data.limit(iter(range(5)), 2)
    assert walk(limited, Cursor(), 9) == [
        ((0, 1, 1), 0),
        ((1, 0, 2), 1),
        ((1, 1, 3), 2),
        ((2, 0, 4), 3),
        ((2, 1, 5), 4),
    ]


@pytest.mark.parametrize("wrap", [lambda x: x, fl.data.prefetch])
def test_a_loader_with_a_position_goes_on_and_resumes_from_it(wrap: Any) -> None:
    def walked(limited: Any, cursor: Cursor, steps: int) -> list[Any]:
        pairs = limited.iterate(cursor)
        found = [
            (after, batch, limited.memo(after)) for after, batch in itertools.islice(pairs, steps)
        ]
        pairs.close()
        return found

    whole = walked(fl.data.limit(wrap(Reader(5)), 2), Cursor(), 9)
    assert [after for after, _, _ in whole][:4] == [(0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4)]
    for i, (after, _, memo) in enumerate(whole[:-1]):
        again = fl.data.limit(wrap(Reader(5)), 2)
        again.recall(memo)
        assert walked(again, after, 8 - i) == whole[i + 1 :]


@pytest.mark.parametrize("make", [lambda: Reader(5), lambda: iter([1]), lambda: zip([1])])
def test_what_cannot_begin_anew_has_no_same_batches(make: Any) -> None:
    with pytest.raises(TypeError, match=r"same=True.*islice"):
        fl.data.limit(make(), 1, same=True)


def test_an_iterator_is_no_validation_data_behind_it_either() -> None:
    for wrapped in (fl.data.limit(iter([1]), 1), fl.data.prefetch(iter([1]))):
        with pytest.raises(TypeError, match="read repeatedly"):
            fl.validate(lambda m, x: m(x).mean(), wrapped)


@pytest.mark.lightning("T15")
def test_all_parts_of_data_are_limited() -> None:
    parts = fl.data.limit(fl.Data([1, 2, 3], validate={"a": [4, 5], "b": [6]}, test=[7, 8]), 1)
    assert list(one_epoch(parts.train)) == [1] and list(one_epoch(parts.test)) == [7]
    assert {name: list(one_epoch(each)) for name, each in parts.validate.items()} == {
        "a": [4],
        "b": [6],
    }
    assert parts.predict is None
    assert as_source(parts).batches == 1


@pytest.mark.lightning("T16")
def test_a_model_learns_a_few_batches_by_heart() -> None:
    loss = lambda m, b: (m(b[0]) - b[1]).square().mean()  # noqa: E731
    make = torch.Generator().manual_seed(0)
    whole = fl.Batches((torch.randn(64, 8, generator=make), torch.randn(64, 1, generator=make)), 2)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(0.05)))
    few = fl.data.limit(whole, 3, same=True)
    _, history = fl.fit(
        step,
        step.init(lambda: torch.nn.Linear(8, 1), seed=0),
        few,
        epochs=300,
        callbacks=[fl.every(1, fl.validate(loss, few), unit="epoch")],
    )
    assert history["val/loss"][-1] < 1e-3 < history["val/loss"][0]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_begins_each_epoch_anew(workers: int) -> None:
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")

    def limited() -> Any:
        examples = [(i, -i) for i in range(10)]
        loader = torchdata.StatefulDataLoader(examples, 2, shuffle=True, num_workers=workers)
        return fl.data.limit(loader, 3)

    pairs, source = [], limited()
    for after, batch in itertools.islice(source.iterate(), 9):
        pairs.append((after, str(batch), source.memo(after)))
    assert len({tuple(batch for _, batch, _ in pairs[i : i + 3]) for i in (0, 3, 6)}) == 3
    for i in (0, 2, 5):
        again = limited()
        again.recall(pairs[i][2])
        rest = [(after, str(b)) for after, b in itertools.islice(again.iterate(pairs[i][0]), 8 - i)]
        assert rest == [pair[:2] for pair in pairs[i + 1 :]]
