from __future__ import annotations

import errno
import math
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fnloop.effects.effect import Run
from fnloop.effects.points import Point
from fnloop.trackers.base import Tracker
from fnloop.trackers.outbox import Outbox
from fnloop.trackers.track import track
from fnloop.trackers.worker import Reading, Worker
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Last, Max, Mean, Sum
from fnloop.values.start import start
from fnloop.values.state import State


class Memory(Tracker):
    """Keeps what it is given."""

    def __init__(self, id: str = "new") -> None:
        self.new = id
        self.config: Mapping[str, Any] = {}
        self.points: list[tuple[int, int, dict[str, float]]] = []
        self.closed: list[str] = []
        self.asked: list[str | None] = []

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        self.config, self.id = config, run or self.new
        self.asked.append(run)

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.points.append((step, epoch, dict(numbers)))

    def close(self, status: str) -> None:
        self.closed.append(status)


@pytest.fixture(scope="module")
def state() -> State:
    return start(torch.nn.Linear(2, 1))


def run(
    effect: track, state: State, steps: list[tuple[Cursor, dict[str, Any]]], **config: Any
) -> None:
    effect.open(Run(step=None, state=state, config=config))
    for cursor, metrics in steps:
        effect(state.replace(cursor=cursor.tensor()), metrics)
    effect.close("completed")


def loss(value: float, weight: int = 1) -> dict[str, Any]:
    return {"loss": Mean(torch.tensor(value * weight), torch.tensor(weight))}


@pytest.mark.lightning("T6", "T20")
def test_points_come_every_n_batches_at_the_epochs_end_and_at_close(state: State) -> None:
    memory = Memory()
    # epochs of 5 batches, the last of which is cut short by the end of the run
    cursors = [Cursor(n // 5, n % 5 * 8, n) for n in range(1, 13)]
    weights = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    run(
        track(memory, every=3),
        state,
        [(c, loss(c.count, w)) for c, w in zip(cursors, weights, strict=True)],
    )

    def mean(*counts: int) -> float:
        return sum(n * n for n in counts) / sum(counts)

    expected = [
        (3, 1, mean(1, 2, 3)),
        (5, 1, mean(4, 5)),
        (6, 2, mean(6)),
        (9, 2, mean(7, 8, 9)),
        (10, 2, mean(10)),
        (12, 3, mean(11, 12)),
    ]
    assert [(step, epoch) for step, epoch, _ in memory.points] == [e[:2] for e in expected]
    assert [n["loss"] for _, _, n in memory.points] == pytest.approx([e[2] for e in expected])


def test_what_is_left_is_written_at_close(state: State) -> None:
    memory = Memory()
    run(track(memory, every=100), state, [(Cursor(0, n, n), loss(n)) for n in (1, 2, 3)])
    assert memory.points == [(3, 1, {"loss": 2.0})]
    assert memory.closed == ["completed"]


def test_validation_is_logged_at_its_own_step_and_rare_metrics_are_not_lost(state: State) -> None:
    memory = Memory()
    steps = [(Cursor(0, n, n), loss(n)) for n in range(1, 11)]
    steps[3][1]["val/loss"] = Mean(7.0, 1)
    steps[4][1]["val/loss"] = Mean(9.0, 1)  # twice in a row, and still two points
    steps[6][1]["rare"] = Sum(torch.tensor(1.5))
    run(track(memory, every=10), state, steps)
    assert memory.points == [
        (4, 1, {"loss": 2.5, "val/loss": 7.0}),
        (5, 1, {"loss": 5.0, "val/loss": 9.0}),
        (10, 1, {"loss": 8.0, "rare": 1.5}),
    ]


def test_a_metric_of_several_numbers_has_a_name_for_each(state: State) -> None:
    memory = Memory()
    metrics = {
        **loss(2.0),
        "matrix": Sum(torch.ones(2, 2)),
        "text": "hello",
        "classes": Last({"cat": torch.tensor(0.5), "rows": torch.ones(3)}),
        "bad": Max(torch.tensor(math.inf)),
        "skipped": Sum(torch.tensor(0)),
    }
    run(track(memory, every=1), state, [(Cursor(0, 1, 1), metrics)])
    rows = {f"classes/rows[{i}]": 1.0 for i in range(3)}
    assert memory.points == [
        (1, 1, {"loss": 2.0, "classes/cat": 0.5, **rows, "bad": math.inf, "skipped": 0.0})
    ]


class Away(Memory):
    """Fails from its third point on, `failures` times."""

    def __init__(self, failures: float, error: Exception | None = None) -> None:
        super().__init__()
        self.failures, self.error = failures, error or OSError(errno.ENOSPC, "disk full")

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        if len(self.points) >= 2 and self.failures > 0:
            self.failures -= 1
            raise self.error
        super().log(numbers, step, epoch)


def watched(effect: track, state: State, points: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(effect, state, [(Cursor(0, n, n), loss(n)) for n in range(1, points + 1)])
    return [str(warning.message) for warning in caught]


@pytest.mark.lightning("L8")
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), RuntimeError("no server")])
def test_a_tracker_that_fails_for_a_while_gets_all_points(state: State, error: Exception) -> None:
    failing, healthy = Away(3, error), Memory()
    (message,) = watched(track(failing, healthy, every=1), state, 7)
    assert f"Away failed at step 3: {type(error).__name__}: {error}. Training goes on" in message
    assert failing.points == healthy.points and len(healthy.points) == 7
    assert failing.closed == healthy.closed == ["completed"]


def test_what_a_tracker_never_takes_is_said(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fnloop.trackers.outbox.time.sleep", lambda seconds: None)
    failing, healthy = Away(math.inf), Memory()
    first, last = watched(track(failing, healthy, every=1), state, 7)
    assert "Away failed at step 3" in first
    assert "Away lacks 5 points of this run (steps 3 to 7): OSError: [Errno 28] disk full" in last
    assert len(failing.points) == 2 and len(healthy.points) == 7


def test_a_point_that_a_tracker_cannot_take_holds_up_no_other(state: State) -> None:
    class Picky(Memory):
        def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
            if step == 3:
                raise KeyError("accuracy")
            super().log(numbers, step, epoch)

    picky = Picky()
    first, last = watched(track(picky, every=1), state, 7)
    assert "Picky failed at step 3: KeyError" in first
    assert "Picky lacks 1 points of this run (step 3): KeyError: 'accuracy'" in last
    assert [step for step, _, _ in picky.points] == [1, 2, 4, 5, 6, 7]


def test_a_tracker_that_cannot_be_opened_is_an_error_at_the_start(state: State) -> None:
    class Refuses(Memory):
        def open(self, config: Mapping[str, Any], run: str | None) -> None:
            raise PermissionError("read-only")

    healthy = Memory()
    effect = track(healthy, Refuses())
    with pytest.raises(RuntimeError, match=r"Refuses cannot be opened.*PermissionError: read-only"):
        effect.open(Run(step=None, state=state))
    assert healthy.closed == ["failed"]
    effect.close("failed")  # as the loop would
    assert healthy.closed == ["failed"]


def reading(step: int) -> Reading:
    return Reading(Point(1, step, {"loss": Mean(1.0, 1)}))


def test_a_lost_server_does_not_hold_up_training() -> None:
    release = threading.Event()

    class Hangs(Memory):
        def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
            release.wait()
            super().log(numbers, step, epoch)

    hangs = Hangs()
    worker = Worker(hangs, capacity=1, patience=0.02)
    worker.start()
    with pytest.warns(UserWarning, match=r"tracker Hangs has written nothing for 0.02 s"):
        for step in range(1, 7):
            worker.put(reading(step))
    release.set()  # it comes back, and goes on with what is still there
    while worker._queue.qsize():
        time.sleep(0.01)
    worker.put(reading(7))
    with pytest.warns(UserWarning, match=r"Hangs lacks 4 points of this run \(steps 3 to 6\)"):
        assert worker.close()
    assert [step for step, _, _ in hangs.points] == [1, 2, 7]


def test_a_server_that_never_answers_does_not_hold_up_the_end() -> None:
    release = threading.Event()

    class Hangs(Memory):
        def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
            release.wait()

    worker = Worker(Hangs(), patience=0.05)
    worker.start()
    worker.put(reading(1))
    with pytest.warns(UserWarning, match="Hangs does not come back from a call"):
        assert not worker.close()
    release.set()


def test_the_end_waits_for_a_slow_tracker_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Memory):
        def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
            time.sleep(0.05)
            super().log(numbers, step, epoch)

    slow = Slow()
    worker = Worker(slow, patience=0.3)
    worker.start()
    for step in range(1, 21):
        worker.put(reading(step))
    assert worker.close()
    assert len(slow.points) == 20
    assert "waiting for Slow, which has some" in caplog.text


def test_of_too_many_points_the_newest_are_kept() -> None:
    taken: list[int] = []

    class Steps(Tracker):
        def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
            taken.append(step)

    outbox = Outbox(Steps(), most=3)
    for step in range(1, 6):
        outbox.add(step, 1, {})
    assert len(outbox) == 3 and not outbox.taken
    outbox.finish()
    assert taken == [3, 4, 5]
    assert "lacks 2 points of this run (steps 1 to 2)" in outbox.messages[-1]


def test_metrics_that_cannot_be_read_do_not_end_tracking(state: State) -> None:
    memory = Memory()
    bad = {"loss": Mean(torch.tensor(1.0), "heavy")}
    with pytest.warns(UserWarning, match="metrics of step 1 cannot be read"):
        run(track(memory, every=1), state, [(Cursor(0, 1, 1), bad), (Cursor(0, 2, 2), loss(2.0))])
    assert memory.points == [(2, 1, {"loss": 2.0})]


@pytest.mark.lightning("L8")
def test_a_resumed_run_goes_on_in_the_same_tracker_run(state: State) -> None:
    class Other(Memory):
        pass

    before = track(Memory(id="a"), Other(id="b"))
    run(before, state, [])
    memo = before.memo()

    other, fresh, memory = Other(), Memory(), Memory()
    after = track(other, memory, fresh)
    after.recall(memo)
    run(after, state, [])
    run(after, state, [])  # a further run is a new one
    assert other.asked == ["b", None]
    assert memory.asked == ["a", None]
    assert fresh.asked == [None, None]


@pytest.mark.lightning("T38")
def test_the_config_is_plain(state: State) -> None:
    memory = Memory()
    run(track(memory), state, [], lr=torch.tensor(0.5), dtype=torch.float16)
    assert memory.config == {"lr": 0.5, "dtype": "torch.float16"}


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"fl\.trackers\.JSONL"):
        track("runs/a.jsonl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"track\(every=.*at least 1, got 0"):
        track(Memory(), every=0)
