"""A loader's own batches as the micro-batches of a step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl
from fnloop.data.sources import Source, as_source, one_epoch
from fnloop.values.cursor import Cursor
from tests.data.test_sources import MAKERS, flat, walk
from tests.data.test_stateful import Counting, Reader


def parts(batch: Any) -> list[Any]:
    return [flat(part) for part in batch.parts]


def walked(source: Any, cursor: Cursor, steps: int, key: int = 0) -> list[Any]:
    pairs = source.iterate(cursor, key)
    found = [(after, parts(batch)) for after, batch in itertools.islice(pairs, steps)]
    pairs.close()
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 100])
@pytest.mark.parametrize("name", MAKERS)
def test_groups_are_the_batches_of_each_epoch_and_resume_from_every_cursor(
    name: str, k: int
) -> None:
    make, batches = MAKERS[name]

    def source() -> Source:
        return fl.data.group(make(), k)

    steps = 2 * -(-batches // k) + 2
    whole = walked(source(), Cursor(), steps, key=9)
    for i in range(steps - 1):
        assert walked(source(), whole[i][0], steps - 1 - i, key=9) == whole[i + 1 :]
    assert [after.count for after, _ in whole] == [*range(1, steps + 1)]
    singles = walk(as_source(make()), Cursor(), batches, key=9)
    first = list(itertools.takewhile(lambda pair: not pair[0].epoch, whole))
    first.append(whole[len(first)])
    assert [len(each) for _, each in first] == [k] * (batches // k) + [batches % k] * (
        batches % k > 0
    )
    assert [part for _, each in first for part in each] == [batch for _, batch in singles]
    assert first[-1][0] == (1, 0, len(first))


@pytest.mark.lightning("T24", "V7")
def test_ten_batches_by_four_step_after_4_8_and_10_with_true_means() -> None:
    """Lightning divides the gradient of the last two by four."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10 * 3 - 1, 4, generator=generator, dtype=torch.float64)  # 9 of 3 and one of 2
    y = torch.randint(3, (len(x),), generator=generator)
    net = nn.Linear(4, 3, dtype=torch.float64)
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.accumulate(4), fl.update(fl.optim.sgd(0.5)))
    data = fl.data.group(DataLoader(TensorDataset(x, y), 3), 4)
    assert data.batches == 3

    mine = nn.Linear(4, 3, dtype=torch.float64)
    mine.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.5)
    ends = [12, 24, 29]
    loop = fl.run(step, step.init(net), data, epochs=1)
    for number, ((state, metrics), (start, end)) in enumerate(
        zip(loop, itertools.pairwise([0, *ends]), strict=True)
    ):
        optimizer.zero_grad()
        value = F.cross_entropy(mine(x[start:end]), y[start:end])  # one large batch
        value.backward()
        optimizer.step()
        assert int(state.step) == number + 1 and int(metrics["loss"].weight) == end - start
        assert float(metrics["loss"]) == pytest.approx(value.item(), rel=1e-12)
        for name, p in mine.named_parameters():
            torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-12, atol=1e-12)
        assert state.cursor.tolist() == [[0, 4, 1], [0, 8, 2], [1, 0, 3]][number]


@pytest.mark.lightning("T24")
def test_a_run_resumes_to_the_bit_at_every_step(tmp_path: Any) -> None:
    x, y = torch.randn(29, 4), torch.randint(3, (29,))
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.accumulate(4), fl.update(fl.optim.adamw(0.1)))

    def data() -> Any:
        return fl.data.group(DataLoader(TensorDataset(x, y), 3, shuffle=True), 4)

    start = step.init(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3)), seed=1)
    whole, _ = fl.fit(step, start, data(), steps=7)
    for stop in range(1, 7):
        folder = tmp_path / str(stop)
        fl.fit(step, start, data(), steps=stop, callbacks=[fl.checkpoint(folder)])
        again = step.init(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3)), seed=2)
        resumed, _ = fl.fit(step, again, data(), steps=7, resume=folder)
        assert fl.tree_equal(resumed, whole)


@pytest.mark.parametrize("wrap", [lambda x: x, fl.data.prefetch])
@pytest.mark.parametrize("make", [lambda: Reader(5), Counting])
def test_a_loader_with_a_position_goes_on_from_it(make: Any, wrap: Any) -> None:
    def recalled(data: Any, cursor: Cursor, steps: int) -> list[Any]:
        pairs = data.iterate(cursor)
        found = [(a, parts(batch), data.memo(a)) for a, batch in itertools.islice(pairs, steps)]
        pairs.close()
        return found

    whole = recalled(wrap(fl.data.group(make(), 2)), Cursor(), 5)
    assert [after.count for after, *_ in whole] == [1, 2, 3, 4, 5]
    for i, (after, _, memo) in enumerate(whole[:-1]):
        again = wrap(fl.data.group(make(), 2))
        again.recall(memo)
        assert recalled(again, after, 4 - i) == whole[i + 1 :]
    # In the process that has drawn the last group, the loader's own memory is enough.
    data = fl.data.group(make(), 2)
    first = recalled(data, Cursor(), 2)
    assert recalled(data, first[-1][0], 3) == whole[2:] and first == whole[:2]


def test_an_iterator_ends_with_a_shorter_group() -> None:
    found = walked(fl.data.group((i for i in range(5)), 2), Cursor(), 9)
    assert [batch for _, batch in found] == [[0, 1], [2, 3], [4]]


def test_it_can_stand_inside_and_around_what_changes_data() -> None:
    limited = fl.data.limit(fl.data.group([*range(10)], 3), 2)
    assert [batch for _, batch in walked(limited, Cursor(), 3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [0, 1, 2],
    ]
    assert fl.data.limit(fl.data.group([*range(10)], 3), 0.5).batches == 2
    inner = fl.data.group(fl.data.limit([*range(10)], 5), 3)
    assert [batch for _, batch in walked(inner, Cursor(), 3)] == [[0, 1, 2], [3, 4], [0, 1, 2]]
    in_order = fl.data.group(fl.Batches(torch.arange(5), 2, shuffle=False), 2)
    assert [parts(batch) for batch in one_epoch(in_order, ordered=True)] == [
        [[0, 1], [2, 3]],
        [[4]],
    ]
    assert repr(inner).endswith(", 3)") and inner.about()["group"] == 3


def test_parts_of_an_epoch_are_counted_in_groups() -> None:
    data, seen = fl.data.group(fl.Batches(torch.randn(40, 2), 2), 5), []
    note = fl.every(0.5, fl.effect(lambda state, _: seen.append(int(state.step))), unit="epoch")
    step = fl.pipe(lambda m, b: m(b).mean(), fl.grad, fl.accumulate(5), fl.update(fl.optim.sgd(0)))
    fl.fit(step, step.init(nn.Linear(2, 1)), data, epochs=2, callbacks=[note])
    assert seen == [2, 4, 6, 8]


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_other_sizes_are_refused(k: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"group\(data, k\)"):
        fl.data.group([1], k)


def test_a_step_without_accumulate_says_what_reads_groups() -> None:
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    data = fl.data.group([(torch.randn(2, 4), torch.tensor([0, 1]))], 2)
    with pytest.raises(TypeError) as caught:
        fl.fit(step, step.init(nn.Linear(4, 3)), data, epochs=1)
    assert "fl.accumulate" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
