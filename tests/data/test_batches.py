from __future__ import annotations

import pickle
import random
import time
from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import fnloop as fl
from fnloop.data.batches import Batches
from fnloop.data.permutation import permute, permute_epochs
from fnloop.data.sources import as_source
from fnloop.trees.nodes import tree
from fnloop.values.cursor import Cursor


class Squares(Dataset[Any]):
    """Examples one by one, with a random augmentation."""

    def __init__(self, n: int, noise: float = 0.0) -> None:
        self.n, self.noise = n, noise

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"i": i, "square": torch.tensor(float(i * i)) + self.noise * torch.rand(())}


class Stream(IterableDataset[Any]):
    """The same one after the other, with a length."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return iter([Squares(4)[i] for i in range(4)])


class Unfinished(Dataset[Any]):
    def __len__(self) -> int:
        return 4


class Kept(Stream):
    """A stream whose examples have numbers, too."""

    def __getitem__(self, i: int) -> Any:
        return Squares(4)[i]


def walk(batches: Batches, cursor: Cursor, steps: int) -> list[tuple[Cursor, Any]]:
    return [pair for pair, _ in zip(batches.iterate(cursor), range(steps), strict=False)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "data", [torch.arange(10), Squares(10, noise=1.0)], ids=["tensor", "dataset"]
)
def test_resumes_exactly_from_every_cursor(data: Any, shuffle: bool, drop_last: bool) -> None:
    batches = Batches(data, 3, shuffle=shuffle, seed=5, drop_last=drop_last)
    whole = walk(batches, Cursor(), 12)
    cursor = Cursor().tensor()
    for i, (after, batch) in enumerate(whole):
        fresh = Batches(data, 3, shuffle=shuffle, seed=5, drop_last=drop_last)
        next_cursor, one = fresh.at(cursor)
        assert str(one) == str(batch)
        assert Cursor.of(next_cursor) == after and after.count == i + 1
        assert str(walk(fresh, after, 11 - i)) == str(whole[i + 1 :])
        cursor = next_cursor


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_walk_gives_the_batches_that_stand_at_its_cursors(drop_last: bool) -> None:
    """Also where it looks further ahead, and where an epoch ends."""
    data = {"x": torch.arange(500), "bits": torch.arange(500).to(torch.uint16)}
    batches = Batches(data, 7, seed=4, drop_last=drop_last)
    cursor = Cursor(1, 30, 5).tensor()
    for after, batch in walk(batches, Cursor(1, 30, 5), 200):
        cursor, one = Batches(data, 7, seed=4, drop_last=drop_last).at(cursor)
        assert Cursor.of(cursor) == after and torch.equal(one["x"], batch["x"])
        assert batch["bits"].tolist() == batch["x"].tolist()


@pytest.mark.lightning("M7")
def test_cursor_counts_examples_and_ends_an_epoch_in_one_form() -> None:
    cursors = [c for c, _ in walk(Batches(torch.arange(10), 4), Cursor(), 4)]
    assert cursors == [(0, 4, 1), (0, 8, 2), (1, 0, 3), (1, 4, 4)]
    cursors = [c for c, _ in walk(Batches(torch.arange(10), 4, drop_last=True), Cursor(), 3)]
    assert cursors == [(0, 4, 1), (1, 0, 2), (1, 4, 3)]
    cursors = [c for c, _ in walk(Batches(torch.arange(8), 4), Cursor(), 2)]
    assert cursors == [(0, 4, 1), (1, 0, 2)]


@pytest.mark.parametrize("n", [1, 7, 64, 9000])
def test_an_epoch_has_each_example_once_in_a_new_order(n: int) -> None:
    batches = Batches(torch.arange(n), 7, seed=1)
    epochs = []
    pairs = batches.iterate()
    for _ in range(2):
        epochs.append(torch.cat([next(pairs)[1] for _ in range(len(batches))]))
        assert torch.equal(epochs[-1].sort().values, torch.arange(n))
    if n > 7:
        assert not torch.equal(*epochs)
        assert not torch.equal(epochs[0], torch.cat(list(Batches(torch.arange(n), 7, seed=2))))
    assert torch.equal(epochs[0], torch.cat(list(batches)))


def test_order_does_not_depend_on_the_batch_size() -> None:
    data = torch.arange(20_000)
    assert torch.equal(torch.cat(list(Batches(data, 33))), torch.cat(list(Batches(data, 12_000))))


def test_goes_on_with_another_batch_size() -> None:
    data = torch.arange(10)
    first = walk(Batches(data, 3), Cursor(), 2)
    rest = walk(Batches(data, 5), first[-1][0], 1)
    assert rest[0][0] == (1, 0, 3)
    read = torch.cat([b for _, b in first + rest])
    assert torch.equal(read.sort().values, data)
    # With drop_last, four examples are left and no batch of five: the next epoch begins.
    assert walk(Batches(data, 5, drop_last=True), first[-1][0], 1)[0][0] == (1, 5, 3)


def test_two_walks_do_not_disturb_each_other() -> None:
    batches = Batches(torch.arange(20_000), 100)
    alone = walk(batches, Cursor(3), 30)
    a, b = batches.iterate(Cursor(3)), batches.iterate(Cursor(9, 500))
    for expected in alone:
        next(b)
        batches.at(torch.tensor([1, 100, 7]))
        after, batch = next(a)
        assert after == expected[0] and torch.equal(batch, expected[1])


class Pair(NamedTuple):
    x: Any
    y: Any


@tree
class Graph:
    nodes: torch.Tensor
    name: str = "g"


def test_batches_have_the_structure_of_the_data() -> None:
    x, y = torch.arange(12.0).reshape(6, 2), np.arange(6)
    data = {"pair": Pair(x, y), "graph": Graph(x + 1), "none": None}
    for batch in Batches(data, 4):
        index = batch["pair"].y
        assert isinstance(batch["pair"], Pair) and isinstance(index, torch.Tensor)
        assert torch.equal(batch["pair"].x, x[index])
        assert torch.equal(batch["graph"].nodes, x[index] + 1) and batch["graph"].name == "g"
        assert batch["none"] is None


def test_takes_what_is_like_a_dict_or_a_tensor_dataset() -> None:
    x = torch.arange(6)
    assert (
        Batches(UserDict(x=x), 6, shuffle=False).at(Cursor().tensor())[1]["x"].tolist()
        == x.tolist()
    )
    (first, second) = next(iter(Batches(TensorDataset(x, x + 1), 4, shuffle=False)))
    assert first.tolist() == [0, 1, 2, 3] and second.tolist() == [1, 2, 3, 4]


def test_numpy_arrays_are_shared_not_copied() -> None:
    x = np.zeros(4)
    batches = Batches(x, 4, shuffle=False)
    x[0] = 7
    assert next(iter(batches))[0] == 7


def test_awkward_numpy_arrays(recwarn: Any) -> None:
    x = np.arange(6)
    frozen = x.copy()
    frozen.setflags(write=False)
    batch = next(iter(Batches((x[::-1], x[::2].repeat(2), frozen, x > 2), 6, shuffle=False)))
    assert [part.tolist() for part in batch] == [
        [5, 4, 3, 2, 1, 0],
        [0, 0, 2, 2, 4, 4],
        [0, 1, 2, 3, 4, 5],
        [False, False, False, True, True, True],
    ]
    assert not recwarn.list


def test_dataset_examples_are_collated() -> None:
    batch = next(iter(Batches(Squares(10), 4, shuffle=False)))
    assert batch["square"].tolist() == [0, 1, 4, 9] and batch["i"].dtype == torch.int64
    examples = [(i, -i) for i in range(5)]
    assert [x.tolist() for x in next(iter(Batches(examples, 3, shuffle=False)))] == [
        [0, 1, 2],
        [0, -1, -2],
    ]


def test_getitems_is_used_where_there_is_one() -> None:
    asked: list[list[int]] = []

    class Many:
        def __len__(self) -> int:
            return 5

        def __getitems__(self, indices: list[int]) -> list[int]:
            asked.append(indices)
            return [10 * i for i in indices]

    assert [b.tolist() for b in Batches(Many(), 3, shuffle=False)] == [[0, 10, 20], [30, 40]]
    assert asked == [[0, 1, 2], [3, 4]]
    subset = Subset(Squares(10), [9, 3])
    assert sorted(next(iter(Batches(subset, 2)))["i"].tolist()) == [3, 9]


def test_augmentation_is_a_function_of_the_cursor_and_leaves_the_generator_alone() -> None:
    batches = Batches(Squares(10, noise=1.0), 5, shuffle=False)
    before = torch.get_rng_state()
    first, again = batches.at(Cursor().tensor())[1], batches.at(Cursor().tensor())[1]
    later = batches.at(torch.tensor([1, 0, 2]))[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["square"], again["square"])
    assert not torch.equal(first["square"], later["square"])


class Augmented(Squares):
    """Draws from each generator that augmentations use."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"i": i, "draws": (torch.rand(()), random.random(), np.random.rand())}


def by_example(batches: list[Any]) -> dict[int, str]:
    return {
        int(i): str([column[k] for column in batch["draws"]])
        for batch in batches
        for k, i in enumerate(batch["i"])
    }


def test_what_an_example_draws_is_a_function_of_seed_epoch_and_example() -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    expected = by_example(list(Batches(Augmented(10), 1, shuffle=False)))
    assert len(set(expected.values())) == 10
    for size in (3, 10):
        for shuffle in (False, True):
            assert by_example(list(Batches(Augmented(10), size, shuffle=shuffle))) == expected
    later = walk(Batches(Augmented(10), 10), Cursor(1, 0, 1), 1)[0][1]
    other = list(Batches(Augmented(10), 10, seed=1))
    values = {*expected.values(), *by_example([later]).values(), *by_example(other).values()}
    assert len(values) == 30
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_a_list_is_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("fnloop.data.readers.seeding")
    assert [batch.tolist() for batch in Batches([3, 4, 5], 2, shuffle=False)] == [[3, 4], [5]]
    with pytest.raises(NameError):
        list(Batches(Squares(3), 2))


def test_at_does_not_change_the_cursor() -> None:
    cursor = torch.tensor([0, 4, 9])
    Batches(torch.arange(10), 4).at(cursor)
    assert cursor.tolist() == [0, 4, 9]


def test_shuffled_batches_own_their_memory() -> None:
    data = torch.arange(10.0)
    next(iter(Batches(data, 10))).zero_()
    assert data.tolist() == list(range(10))


def test_batches_in_memory_cost_microseconds() -> None:
    for examples in (1000, 60_000):
        pairs = Batches((torch.randn(examples, 64), torch.arange(examples)), 64).iterate()
        best = float("inf")
        for _ in range(10):
            began = time.process_time()  # other tests run beside this one
            for _ in range(300):
                next(pairs)
            best = min(best, (time.process_time() - began) / 300)
        assert best < 80e-6


def test_one_look_ahead_serves_several_short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def noting(positions: torch.Tensor, n: int, seed: int, epochs: Any) -> torch.Tensor:
        asked.append(list(epochs))
        return permute_epochs(positions, n, seed, epochs)

    monkeypatch.setattr("fnloop.data.shuffled.permute_epochs", noting)
    batches = Batches(torch.arange(1000), 100, seed=3)
    seen = [batch for _, batch in walk(batches, Cursor(2, 300, 23), 67)]  # to the end of epoch 8
    assert asked == [[*range(2, 18)]]  # 16, though there would be room for more
    for i, epoch in enumerate(range(3, 9)):
        one = torch.cat(seen[7 + 10 * i : 17 + 10 * i])
        assert torch.equal(one, permute(torch.arange(1000), 1000, 3, epoch))
    walk(Batches(torch.arange(1000), 100, seed=3), Cursor(9, 0, 90), 1)
    assert asked[1] == [*range(9, 25)]


def test_length_and_repr() -> None:
    x = torch.arange(10)
    assert len(Batches(x, 4)) == 3 and Batches(x, 4).examples == 10
    assert len(Batches(x, 4, drop_last=True)) == 2 and len(Batches(x, 5)) == 2
    assert repr(Batches(x, 4)) == (
        "Batches(10 examples, batch_size=4, shuffle=True, seed=0, drop_last=False)"
    )


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_bad_batch_size(size: Any) -> None:
    wrong = ValueError if type(size) is int else TypeError
    with pytest.raises(wrong, match=f"batch_size=.* whole number of at least 1, got {size!r}"):
        Batches(torch.arange(3), size)


def test_bad_data() -> None:
    with pytest.raises(ValueError, match="0 examples"):
        Batches((torch.zeros(0, 3), torch.zeros(0)), 2)
    with pytest.raises(ValueError, match="0 examples"):
        Batches([], 2)
    with pytest.raises(ValueError, match="0 examples"):
        Batches((), 2)
    with pytest.raises(ValueError, match=r"drop_last=True leaves no batch: there are 3 .* is 4"):
        Batches(torch.arange(3), 4, drop_last=True)
    with pytest.raises(ValueError, match=r"x  f32\[5,2\]\n  y  i64\[4\]"):
        Batches({"x": torch.zeros(5, 2), "y": torch.arange(4)}, 2)
    with pytest.raises(ValueError, match=r"f32\[\] at '1'"):
        Batches((torch.zeros(3), torch.tensor(1.0)), 2)
    with pytest.raises(ValueError, match="'cat' at '0'"):
        Batches(("cat", torch.zeros(3)), 2)
    with pytest.raises(ValueError, match="has dtype <U1"):
        Batches(np.array(["a", "b"]), 2)
    with pytest.raises(ValueError, match="Use a tuple for columns"):
        Batches([torch.zeros(3), torch.zeros(3)], 2)
    with pytest.raises(TypeError, match="generator"):
        Batches((i for i in range(3)), 2)


def test_a_cursor_from_other_data() -> None:
    with pytest.raises(ValueError, match="example 10 of an epoch of 10"):
        Batches(torch.arange(10), 4).at(torch.tensor([0, 10, 3]))


def test_inputs_and_targets_are_one_argument():
    with pytest.raises(TypeError, match=r"batch_size=.* such as a tuple: fl\.Batches\(\(x,"):
        Batches(torch.ones(8, 2), torch.ones(8), 64)  # type: ignore[arg-type]  # pyright: ignore


def test_a_table_is_told_how_to_become_tensors():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[7, 9])
    message = r"DataFrame of pandas.*torch\.tensor\(table\[names\]\.to_numpy\(\)\)"
    for data in (table, (table, table)):
        with pytest.raises(TypeError, match=message):
            fl.Batches(data, 2)
    with pytest.raises(TypeError, match=r"Series of pandas.*torch\.tensor\(column"):
        fl.Batches({"a": table["a"]}, 2)
    with pytest.raises(TypeError, match=message):
        as_source(table)
    x = torch.tensor(table[["a", "b"]].to_numpy()).float()
    assert next(iter(fl.Batches(x, 2, shuffle=False))).tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    "name", ["batch_size", "shuffle", "seed", "drop_last", "examples", "batches"]
)
def test_what_batches_are_made_with_cannot_be_set(name: str) -> None:
    batches = Batches(torch.arange(10), 4, seed=1)
    walked = walk(batches, Cursor(), 5)
    remedy = r"resized\(n\)" if name == "batch_size" else r"another fl\.Batches"
    with pytest.raises(AttributeError, match=f"{name} of fl.Batches cannot be changed.*{remedy}"):
        setattr(batches, name, 2)
    for (after, batch), (then, other) in zip(walked, walk(batches, Cursor(), 5), strict=True):
        assert after == then and torch.equal(batch, other)


def test_resized_is_made_anew_and_the_old_one_stays() -> None:
    batches = Batches(torch.arange(10), 4, seed=1, drop_last=True)
    for many in (batches.resized(3), pickle.loads(pickle.dumps(batches)).resized(3)):
        made = Batches(torch.arange(10), 3, seed=1, drop_last=True)
        assert (len(many), many.batches, many.batch_size) == (3, 3, 3)
        assert repr(many) == repr(made) and many.about() == made.about()
        for (after, batch), (then, other) in zip(
            walk(many, Cursor(), 7), walk(made, Cursor(), 7), strict=True
        ):
            assert after == then and torch.equal(batch, other)
    assert (len(batches), batches.batch_size) == (2, 4)


def test_a_run_goes_on_in_batches_of_another_size() -> None:
    """The index of the cursor counts examples, so no example is missed or read twice."""
    step = fl.pipe(
        lambda m, x: (m(x).mean(), {"seen": fl.Sum(x.sum())}), fl.grad, fl.update(fl.optim.sgd(0.1))
    )
    batches, seen = Batches(torch.arange(10.0)[:, None], 2, seed=1), 0.0
    state = step.init(torch.nn.Linear(1, 1))
    for part, steps in ((batches, 2), (batches.resized(3), 2)):
        state, history = fl.fit(step, state, part, steps=steps)
        seen += sum(row["seen"] for row in history)
    assert seen == sum(range(10)) and state.cursor.tolist() == [1, 0, 4]


@pytest.mark.parametrize(
    "take", [lambda data: Batches(data, 2), lambda data: fl.data.pack(data, 4, 0)]
)
def test_a_dataset_without_numbered_examples_is_refused_where_it_is_given(take: Any) -> None:
    for data in (Stream(), Subset(Stream(), [0, 2])):
        with pytest.raises(TypeError, match=r"Stream is an IterableDataset.*DataLoader\(dataset, "):
            take(data)
    with pytest.raises(TypeError, match="Unfinished is a Dataset without __getitem__"):
        take(Unfinished())


def test_a_stream_is_read_by_the_loader_and_the_list_that_the_error_names() -> None:
    loaded = as_source(DataLoader(Stream(), 2)).iterate(Cursor())
    for batches in (Batches(list(Stream()), 2, shuffle=False), Batches(Kept(), 2, shuffle=False)):
        for (_, batch), (_, other) in zip(walk(batches, Cursor(), 2), loaded, strict=False):
            assert str(batch) == str(other)
