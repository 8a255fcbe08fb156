from __future__ import annotations

import gc
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fnloop._torch.random import seeded
from fnloop.data.batches import Batches
from fnloop.data.prefetching import _with_index, prefetch
from fnloop.data.sources import as_source, one_epoch
from fnloop.values.cursor import Cursor


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "fnloop-prefetch"]


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_gives_the_same_cursors_and_batches(depth: int) -> None:
    data = Batches(torch.arange(20), 3)
    expected = list(itertools.islice(data.iterate(Cursor(1, 6, 9)), 15))
    pairs = prefetch(data, depth).iterate(Cursor(1, 6, 9))
    for (after, batch), (expected_after, expected_batch) in zip(pairs, expected, strict=False):
        assert after == expected_after and torch.equal(batch, expected_batch)
    pairs.close()
    assert not threads()


def test_shuffled_loader_has_the_order_of_its_key() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10)), 3, shuffle=True)
    for key in (1, 2):
        plain = itertools.islice(as_source(loader).iterate(Cursor(), key), 9)
        expected = str(list(plain))
        pairs = prefetch(loader).iterate(Cursor(), key)
        assert str(list(itertools.islice(pairs, 9))) == expected
        pairs.close()


def test_draws_ahead_no_more_than_depth() -> None:
    drawn: list[int] = []

    def data() -> Iterator[int]:
        for i in range(100):
            drawn.append(i)
            yield i

    pairs = prefetch(data(), depth=3).iterate()
    assert not threads()  # nothing starts before the first batch is asked for
    next(pairs)
    assert wait_until(lambda: len(drawn) == 4)
    time.sleep(0.05)
    assert len(drawn) == 4
    pairs.close()
    assert not threads()


class Slow:
    """Batches that take a while, without the interpreter and without random numbers."""

    batches = None

    def __init__(self, seconds: float) -> None:
        self.seconds, self.drawn = seconds, 0

    def iterate(self, cursor: Cursor, key: int) -> Iterator[tuple[Cursor, int]]:
        while True:
            time.sleep(self.seconds)
            self.drawn += 1
            yield Cursor(0, self.drawn, self.drawn), self.drawn


@pytest.mark.lightning("H17")
def test_the_next_batch_is_drawn_while_this_one_is_worked_on() -> None:
    data: Any = Slow(0.02)
    pairs = prefetch(data, depth=1).iterate()
    next(pairs)
    began = time.perf_counter()
    for _ in range(10):
        time.sleep(0.02)  # a step
        next(pairs)
    seconds = time.perf_counter() - began
    pairs.close()
    assert 0.2 <= seconds < 0.32  # one after the other they take 0.4


def test_tensors_are_drawn_while_a_step_holds_the_random_generators() -> None:
    pairs = prefetch(Batches((torch.arange(20), torch.ones(20, 2)), 4), depth=3).iterate()
    with seeded(0):
        drawn = [next(pairs)[0].count for _ in range(8)]
    pairs.close()
    assert drawn == [1, 2, 3, 4, 5, 6, 7, 8]


def test_cuda_is_the_current_device_of_the_thread_that_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert _with_index(torch.device("cuda")) == torch.device("cuda:1")
    assert _with_index(torch.device("cuda:0")) == torch.device("cuda:0")
    assert _with_index(torch.device("cpu")) == torch.device("cpu")
    assert _with_index(None) is None


def test_the_thread_ends_when_the_consumer_is_forgotten() -> None:
    pairs = prefetch(Batches(torch.arange(20), 3)).iterate()
    next(pairs)
    assert len(threads()) == 1
    del pairs
    gc.collect()
    assert wait_until(lambda: not threads())


def test_the_thread_ends_with_the_data() -> None:
    assert list(one_epoch(prefetch(iter([1, 2, 3]), depth=2))) == [1, 2, 3]
    assert not threads()


def test_the_data_is_closed_in_the_end() -> None:
    closed: list[bool] = []

    def data(epoch: int) -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    pairs = prefetch(data).iterate()
    next(pairs)
    pairs.close()
    gc.collect()
    assert closed == [True]


def test_errors_surface_at_the_consumer_with_their_traceback() -> None:
    def broken_reader(epoch: int) -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk on fire")

    pairs = prefetch(broken_reader).iterate()
    assert next(pairs)[1] == 1
    with pytest.raises(OSError, match="disk on fire") as caught:
        next(pairs)
    assert "broken_reader" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not threads()


@pytest.mark.lightning("T1", "H8")
def test_moves_tensors_and_leaves_the_rest() -> None:
    class Foreign:
        def __init__(self, device: str) -> None:
            self.device = device

        def to(self, device: torch.device, non_blocking: bool) -> Foreign:
            return Foreign(str(device))

    batch: dict[str, Any] = {"x": torch.ones(2), "name": "a", "foreign": Foreign("here")}
    (moved,) = one_epoch(prefetch([batch], device="meta"))
    assert moved["x"].device.type == "meta" and moved["name"] == "a"
    assert moved["foreign"].device == "meta"
    assert batch["x"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_to_cuda() -> None:
    data = Batches(torch.arange(1000.0), 100, shuffle=False)
    pairs = prefetch(data, device="cuda").iterate()
    for _, batch in itertools.islice(pairs, 30):
        assert batch.device.type == "cuda"
        assert float(batch[-1] - batch[0]) == 99.0
    pairs.close()


def test_lengths_and_errors() -> None:
    assert prefetch([1, 2]).batches == 2
    assert prefetch(iter([1])).batches is None
    with pytest.raises(ValueError, match=r"prefetch\(depth=.* at least 1, got 0"):
        prefetch([1], depth=0)


class Recorded(DataLoader[Any]):
    """A loader that notes in which thread it is started."""

    started: list[threading.Thread]

    def __iter__(self) -> Any:
        self.started.append(threading.current_thread())
        return super().__iter__()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("wrap", [lambda data: data, prefetch, lambda data: lambda epoch: data])
def test_epochs_start_in_the_thread_that_asks(
    workers: int, wrap: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorded, "started", [], raising=False)
    loader = Recorded(TensorDataset(torch.arange(10)), 4, num_workers=workers)
    pairs = prefetch(wrap(loader)).iterate()
    batches = [batch[0].tolist() for _, batch in itertools.islice(pairs, 7)]
    pairs.close()
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2 + [[0, 1, 2, 3]]
    # The last is the second one of an epoch: nothing begins ahead of what is asked for.
    assert Recorded.started == [threading.main_thread()] * 3


class Stateful:
    """A loader that can be resumed, and notes in which thread it is started."""

    def __init__(self) -> None:
        self.started: list[threading.Thread] = []

    def __iter__(self) -> Iterator[int]:
        self.started.append(threading.current_thread())
        return iter([1, 2])

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def test_a_stateful_loader_starts_in_the_thread_that_asks() -> None:
    data = Stateful()
    pairs = prefetch(data).iterate()
    assert [batch for _, batch in itertools.islice(pairs, 4)] == [1, 2, 1, 2]
    pairs.close()
    assert data.started and set(data.started) == {threading.main_thread()}


def test_what_starting_raises_comes_out_and_the_thread_ends() -> None:
    def data(epoch: int) -> list[int]:
        if epoch:
            raise OSError("no such shard")
        return [1, 2]

    with pytest.raises(OSError, match="no such shard"):
        list(itertools.islice(prefetch(data).iterate(), 5))
    assert wait_until(lambda: not threads())


def test_the_thread_ends_while_it_waits_for_an_epoch_to_start() -> None:
    pairs = prefetch(lambda epoch: [1, 2]).iterate()
    assert next(pairs)[1] == 1 and next(pairs)[1] == 2
    time.sleep(0.05)  # the thread asks for the second epoch, and nobody answers
    began = time.perf_counter()
    pairs.close()
    assert time.perf_counter() - began < 1 and not threads()
