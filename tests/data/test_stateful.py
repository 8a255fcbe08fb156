from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fnloop.data.prefetching import prefetch
from fnloop.data.sources import Source, as_source, one_epoch
from fnloop.data.stateful import Stateful, StatefulOnce
from fnloop.values.cursor import Cursor


class Reader:
    """A loader that shuffles with a generator of its own, which goes on from epoch to epoch."""

    def __init__(self, n: int = 7, seed: int = 0) -> None:
        self.n = n
        self.generator = torch.Generator().manual_seed(seed)
        self.began = self.generator.get_state()
        self.position = 0
        self.taken: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, float]]:
        self.generator.set_state(self.began)
        order = torch.randperm(self.n, generator=self.generator).tolist()
        while self.position < self.n:
            self.position += 1
            self.taken.append(order[self.position - 1])
            yield order[self.position - 1], random.random()
        self.position, self.began = 0, self.generator.get_state()

    def state_dict(self) -> dict[Any, Any]:
        return {"began": self.began, "position": self.position, 3: (b"any", {"more": None})}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        assert state[3] == (b"any", {"more": None})
        self.began, self.position = state["began"], state["position"]


class SizedReader(Reader):
    def __len__(self) -> int:
        return self.n


class Counting:
    """An iterator with the other pair of methods."""

    def __init__(self, n: int = 9) -> None:
        self.n, self.i = n, 0

    def __iter__(self) -> Counting:
        return self

    def __next__(self) -> tuple[int, float]:
        if self.i == self.n:
            raise StopIteration
        self.i += 1
        return self.i, random.random()

    def get_state(self) -> bytes:
        return str(self.i).encode()

    def set_state(self, state: bytes) -> None:
        self.i = int(state)


def walk(source: Any, cursor: Cursor, steps: int, key: int = 5) -> list[tuple[Cursor, Any, Any]]:
    """Cursors, batches, and the positions as they come back from a checkpoint."""
    pairs = source.iterate(cursor, key)
    found: list[tuple[Cursor, Any, Any]] = []
    for after, batch in itertools.islice(pairs, steps):
        found.append((Cursor(*after), batch, json.loads(json.dumps(source.memo(after)))))
    pairs.close()
    return found


def recalled(data: Any, memo: Any) -> Any:
    source: Any = as_source(data)
    source.recall(memo)
    return source


@pytest.mark.lightning("H14")
@pytest.mark.parametrize("make", [Reader, SizedReader])
def test_goes_on_exactly_from_every_batch_and_reads_nothing_twice(make: type[Reader]) -> None:
    whole = walk(as_source(make()), Cursor(), 17)
    assert [c.epoch for c, _, _ in whole] == [0] * 6 + [1] * 7 + [2] * 4
    epochs = [[batch[0] for _, batch, _ in whole[i : i + 7]] for i in (0, 7)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7)) and epochs[0] != epochs[1]
    for i, (cursor, _, memo) in enumerate(whole[:-1]):
        fresh = make(seed=99)
        assert walk(recalled(fresh, memo), cursor, 16 - i) == whole[i + 1 :]
        drawn = [batch[0] for _, batch, _ in whole[i + 1 :]]
        assert fresh.taken[: len(drawn)] == drawn


def test_the_position_is_that_before_the_look_ahead() -> None:
    source: Any = as_source(Reader())
    pairs = source.iterate()
    cursors = [next(pairs)[0] for _ in range(7)]
    assert [source.memo(c)["state"]["$dict"][1] for c in cursors] == [
        ["position", i + 1] for i in range(7)
    ]
    assert cursors[-1] == (1, 0, 7)


@pytest.mark.parametrize("depth", [1, 4])
def test_what_is_drawn_ahead_does_not_leak_into_the_position(depth: int) -> None:
    plain = walk(as_source(Reader()), Cursor(), 12)
    ahead = walk(prefetch(Reader(), depth), Cursor(), 12)
    assert ahead == plain
    cursor, _, memo = ahead[4]
    assert walk(recalled(prefetch(Reader(seed=9), depth), memo), cursor, 7) == plain[5:]


def test_two_runs_of_one_loader_are_one() -> None:
    whole = walk(as_source(Reader()), Cursor(), 12)
    loader = Reader()
    first = walk(as_source(loader), Cursor(), 5)
    assert first + walk(as_source(loader), first[-1][0], 7) == whole
    ahead = prefetch(Reader(), 3)
    first = walk(ahead, Cursor(), 5)
    assert first + walk(ahead, first[-1][0], 7) == whole


def test_a_run_from_the_beginning_starts_the_loader_as_it_was_given() -> None:
    loader = Reader()
    next(iter(loader))  # it stands in the middle of an epoch
    first = walk(as_source(loader), Cursor(), 9)
    assert len({batch[0] for _, batch, _ in first[:6]}) == 6
    assert first[5][0] == (1, 0, 6)
    assert walk(as_source(loader), Cursor(), 9) == first
    assert len(list(one_epoch(loader))) == len(list(one_epoch(loader))) == 6


def test_an_iterator_with_a_position() -> None:
    source = as_source(Counting())
    assert isinstance(source, StatefulOnce) and source.batches is None
    whole = walk(source, Cursor(), 20)
    assert [(tuple(c), batch[0]) for c, batch, _ in whole] == [((0, i, i), i) for i in range(1, 10)]
    for i in (0, 4, 7):
        cursor, _, memo = whole[i]
        assert memo["state"] == {"$bytes": ["MQ==", "Mg==", "Mw==", "NA==", "NQ==", "Ng==", "Nw==",
                                            "OA=="][i]}  # fmt: skip
        assert walk(recalled(Counting(), memo), cursor, 20) == whole[i + 1 :]
    with pytest.raises(ValueError, match="can be read only once"):
        next(as_source(source._data).iterate(Cursor(0, 9, 9)))  # pyright: ignore


def test_a_position_of_another_cursor_is_an_error() -> None:
    (cursor, _, memo), *_ = walk(as_source(Reader()), Cursor(), 1)
    with pytest.raises(
        ValueError, match=r"at cursor \[0, 1, 1\], but the run continues at \[0, 2, 2"
    ):
        next(recalled(Reader(), memo).iterate(Cursor(0, 2, 2)))
    assert cursor == (0, 1, 1)
    for bad in (None, [], {}, {"cursor": [0, 1, 1]}, {"cursor": [0, 1.0, 1], "state": 1}):
        with pytest.raises(ValueError, match="not a position of a data loader"):
            recalled(Reader(), bad)
    with pytest.raises(ValueError, match=r"position of the data, but this data has no positions"):
        prefetch([1]).recall(memo)


def test_a_position_that_is_not_known_is_warned_of() -> None:
    loader = Reader()
    with pytest.warns(UserWarning, match=r"Reader\) goes on from where it stands.*\[1, 3, 10\]"):
        pairs = as_source(loader).iterate(Cursor(1, 3, 10))
        next(pairs)
    assert as_source(Reader()).memo(Cursor()) is None  # pyright: ignore
    assert prefetch([1]).memo(Cursor()) is None


class Unkept(Reader):
    def state_dict(self) -> dict[Any, Any]:
        return {"part": [{"lock": threading.Lock()}]}


def test_a_state_that_cannot_be_kept_is_an_error_only_when_it_is_asked_for() -> None:
    loader = Unkept()
    source: Any = as_source(loader)
    pairs = source.iterate()
    after, _ = next(pairs)
    with pytest.raises(ValueError, match=r"state\['part'\]\[0\]\['lock'\] is a _thread.lock"):
        source.memo(after)
    pairs.close()
    with pytest.warns(UserWarning, match="is not known"):
        next(as_source(loader).iterate(Cursor(*after)))
    next(as_source(loader).iterate())


def test_the_position_is_a_copy() -> None:
    class Growing(Reader):
        def state_dict(self) -> Any:
            return self.taken

    source: Any = as_source(Growing())
    pairs = source.iterate()
    cursors = [next(pairs)[0] for _ in range(3)]
    assert [len(source.memo(c)["state"]) for c in cursors] == [1, 2, 3]


def test_the_loader_hears_of_the_epoch_before_it_is_given_its_state() -> None:
    heard: list[Any] = []

    class Listening(Reader):
        def set_epoch(self, epoch: int) -> None:
            heard.append(epoch)

        def load_state_dict(self, state: dict[Any, Any]) -> None:
            heard.append("state")
            super().load_state_dict(state)

    whole = walk(as_source(Listening()), Cursor(), 9)
    assert heard == [0, 1]
    heard.clear()
    walk(recalled(Listening(), whole[7][2]), whole[7][0], 1)
    assert heard == [1, "state"]
    heard.clear()
    walk(recalled(Listening(), whole[6][2]), whole[6][0], 1)
    assert heard == [1, "state", 1]  # the state of an epoch's end gives no batch


def test_loaders_that_cannot_be_referred_to_weakly() -> None:
    class Slotted(Reader):
        __hash__ = None  # pyright: ignore

    assert walk(as_source(Slotted()), Cursor(), 3) == walk(as_source(Reader()), Cursor(), 3)


def test_what_is_stateful() -> None:
    assert isinstance(as_source(Reader()), Stateful) and isinstance(as_source(Reader()), Source)
    assert not isinstance(as_source(DataLoader([1])), Stateful)  # pyright: ignore
    assert not isinstance(as_source(torch.nn.Sequential(torch.nn.ReLU())), Stateful)


def test_its_fingerprint() -> None:
    about = {
        "kind": "stateful",
        "loader": f"{__name__}.SizedReader",
        "batches": 7,
        "index": "batches",
        "exact": "by its own state",
    }
    source: Any = as_source(SizedReader())
    assert source.about() == prefetch(SizedReader()).about() == about


def test_torchdata() -> None:
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")

    def make(workers: int) -> Any:
        data = [(i, -i) for i in range(10)]
        return torchdata.StatefulDataLoader(data, 3, shuffle=True, num_workers=workers)

    for workers in (0, 2):
        whole = walk(as_source(make(workers)), Cursor(), 9)
        for i in (0, 3, 6):
            cursor, _, memo = whole[i]
            rest = walk(recalled(make(workers), memo), cursor, 8 - i)
            assert str(rest) == str(whole[i + 1 :])
