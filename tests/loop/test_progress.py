from __future__ import annotations

import io
import sys
import threading
import time
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.effects.activity import Activity, watchers
from fnloop.effects.effect import Run
from fnloop.loop.progress import progress
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Last, Mean, Sum, stop
from fnloop.values.start import start
from fnloop.values.state import State


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def state() -> State:
    return start(torch.nn.Linear(2, 1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves when the test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def metrics(count: int, **more: Any) -> dict[str, Any]:
    return {
        "loss": Mean(torch.tensor(float(count)), torch.tensor(1)),
        "lr": Last(3e-4),
        "skipped": Sum(torch.tensor(0)),
        **more,
    }


def test_without_a_terminal_there_is_a_line_now_and_then(state: State, clock: list[float]) -> None:
    out = io.StringIO()
    effect = progress(every_seconds=10, file=out)
    begun = state.replace(cursor=Cursor(1, 16, 6).tensor())  # resumed: epochs of 4, 2 of them read
    effect.open(Run(step=None, state=begun, batches=4, total=6))
    assert out.getvalue() == ""
    for count in range(7, 13):
        clock[0] += 4.0
        cursor = Cursor(count // 4, count % 4 * 8, count)
        more = {"val/loss": Mean(0.25, 1)} if count == 8 else {}
        effect(state.replace(cursor=cursor.tensor()), metrics(count, **more))
    clock[0] += 1.0
    effect.close("completed")
    assert out.getvalue().splitlines() == [
        "epoch 3/3  batch 1/4  loss 8  val/loss 0.25  lr 0.0003  0.25 it/s",
        "epoch 3/3  batch 4/4  loss 11  val/loss 0.25  lr 0.0003  0.25 it/s",
        "completed  epoch 3/3  batch 4/4  6 batches in 25.0 s  loss 11  val/loss 0.25  lr 0.0003",
    ]


@pytest.mark.lightning("C9")
def test_a_skipped_step_is_shown_and_names_choose(state: State, clock: list[float]) -> None:
    out, chosen = io.StringIO(), io.StringIO()
    effects = progress(file=out), progress(names=["lr", "loss", "missing"], file=chosen)
    for effect in effects:
        effect.open(Run(step=None, state=state))
        moved = state.replace(cursor=Cursor(0, 1, 1).tensor())
        effect(moved, {"loss": Mean(1.0, 1), "lr": Last(0.5), "skipped": Sum(2)})
        clock[0] += 3725.0
        effect.close("failed")
    assert out.getvalue() == (
        "failed  epoch 1  batch 1  1 batches in 1:02:05  loss 1  lr 0.5  skipped 2\n"
    )
    assert chosen.getvalue().endswith("1:02:05  lr 0.5  loss 1\n")


def test_a_run_that_fails_at_its_first_step_has_drawn_no_batch(state: State) -> None:
    out = io.StringIO()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state, batches=25, total=50))
    effect.close("failed")
    assert out.getvalue().startswith("failed  epoch 1/2  batch 0/25  0 batches")


def test_the_reason_of_a_stop_is_in_the_last_line(state: State) -> None:
    out = io.StringIO()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state))
    moved = state.replace(cursor=Cursor(0, 1, 1).tensor())
    effect(moved, {"loss": Mean(1.0, 1), "stop": stop(True, "no improvement")})
    effect.close("stopped")
    assert out.getvalue().startswith("stopped (no improvement)  epoch 1")


@pytest.mark.lightning("C9", "V9")
def test_on_a_terminal_there_is_a_bar_and_a_line_an_epoch(state: State, clock: list[float]) -> None:
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state, batches=50, total=200))
    for count in range(1, 201):
        clock[0] += 0.01
        epoch, index = divmod(count, 50)
        more = {"val/loss": Mean(0.5 / epoch, 1)} if not index else {}
        effect(state.replace(cursor=Cursor(epoch, index, count).tensor()), metrics(count, **more))
    effect.close("completed")
    drawn = out.getvalue().replace("\n", "\r").split("\r")
    lines = [line.rstrip() for line in drawn if line.strip()]
    kept = [line for line in lines if "━" not in line and "─" not in line]
    assert kept == [
        "epoch 1/4  0.5 s  loss 25.5  val/loss 0.5  lr 0.0003",
        "epoch 2/4  0.5 s  loss 75.5  val/loss 0.25  lr 0.0003",
        "epoch 3/4  0.5 s  loss 125.5  val/loss 0.1667  lr 0.0003",
        "epoch 4/4  0.5 s  loss 175.5  val/loss 0.125  lr 0.0003",
        "completed  epoch 4/4  batch 50/50  200 batches in 2.0 s  loss 196  +2",
    ]
    assert all(len(line) < 80 for line in lines)
    bars = [line for line in lines if line not in kept]
    assert len(bars) <= 24  # 2 seconds at 10 a second, the first and the last
    assert bars[2] == "epoch 1/4  " + "━" * 3 + "─" * 12 + (
        "  11/50  loss 6.5  lr 0.0003  100 it/s  1.9 s left"
    )
    assert "skipped" not in out.getvalue()


@pytest.mark.lightning("C9", "V9")
def test_an_endless_run_has_no_bar_and_a_line_for_each_validation(
    state: State, clock: list[float]
) -> None:
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state))
    for count in range(1, 8):
        clock[0] += 1.0
        more = {"val/loss": Mean(1.0, 1)} if count == 4 else {}
        effect(state.replace(cursor=Cursor(0, count, count).tensor()), metrics(count, **more))
    effect.close("interrupted")
    assert "epoch 1  batch 1  loss 1" in out.getvalue()
    kept = [line.split("\r")[-1].rstrip() for line in out.getvalue().split("\n")[:-1]]
    assert kept[0] == "epoch 1  batch 4  4.0 s  loss 2.5  val/loss 1  lr 0.0003"
    assert len(kept) == 2


def test_short_epochs_share_a_line(state: State, clock: list[float]) -> None:
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state, batches=1, total=1000))
    for count in range(1, 1001):
        clock[0] += 0.001
        effect(state.replace(cursor=Cursor(count, 0, count).tensor()), metrics(count))
    effect.close("completed")
    assert 10 <= out.getvalue().count("\n") <= 25


@pytest.mark.lightning("V9")
def test_while_something_takes_long_the_line_goes_on(state: State) -> None:
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state, batches=5, total=5))
    with Activity("compiling"):
        time.sleep(1.7)
    for watcher in watchers():
        watcher.says("compiled")
    moved = state.replace(cursor=Cursor(0, 1, 1).tensor())
    effect(moved, metrics(1))
    with Activity("val", total=3) as validation:
        for _ in range(3):
            time.sleep(0.11)
            validation.advance()
            effect._due = 0.0
    effect.close("completed")
    text = out.getvalue()
    for expected in ("starting", "0/5  compiling, 1 s", "compiled", "1/5  val  ━━━━━──  2/3"):
        assert expected in text
    assert watchers() == () and not any(
        thread.name == "fnloop-progress" for thread in threading.enumerate()
    )


def after_five_batches(state: State) -> tuple[Screen, progress]:
    """A bar, half through the first of two epochs, and what it is drawn on."""
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state, batches=10, total=20))
    effect(state.replace(cursor=Cursor(0, 5, 5).tensor()), metrics(5))
    return out, effect


@pytest.mark.lightning("C9", "V9")
def test_a_validation_in_training_has_a_bar_of_its_own_and_what_is_within_it_comes_back(
    state: State, clock: list[float]
) -> None:
    out, effect = after_five_batches(state)
    with Activity("val", total=4) as validation:
        for _ in range(3):
            clock[0] += 1.0
            validation.advance()
        with Activity("compiling"):
            clock[0] += 1.0
            effect._draw()
        effect._drawn = 0.0
        effect.shows(validation)
    effect._draw()
    lines = [line.rstrip() for line in out.getvalue().split("\r")]
    effect.close("completed")
    bar = "epoch 1/2  " + "━" * 8 + "─" * 7 + "  5/10  "
    own = "val  " + "━" * 5 + "─" * 2 + "  3/4  1.3 s left"
    assert bar + own in lines and bar + "compiling, 1 s" in lines
    assert lines[-1].startswith(bar + "loss 5")
    assert all(len(line) < 80 for line in lines)


def test_a_quick_activity_is_drawn_ten_times_a_second_at_most(
    state: State, clock: list[float]
) -> None:
    out, effect = after_five_batches(state)
    clock[0] += 5.0
    before = out.getvalue().count("\r")
    with Activity("val", total=400) as validation:
        for _ in range(400):
            clock[0] += 0.001
            validation.advance()
    drawn = out.getvalue().count("\r") - before
    effect.close("completed")
    assert 4 <= drawn <= 5


def test_what_is_measured_beside_is_shown_where_it_is_named(
    state: State, clock: list[float]
) -> None:
    shown: list[str] = []
    for names in (None, ["samples_per_sec", "loss"]):
        out = io.StringIO()
        effect = progress(file=out, names=names)
        effect.open(Run(step=None, state=state, gauges=[lambda: {"samples_per_sec": 250.0}]))
        effect(state.replace(cursor=Cursor(0, 1, 1).tensor()), metrics(1))
        effect.close("completed")
        shown.append(out.getvalue())
    assert "samples_per_sec" not in shown[0] and "samples_per_sec 250  loss 1\n" in shown[1]


def loss(model: Any, batch: Any) -> Any:
    return model(batch).square().mean()


def run(**arguments: Any) -> None:
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    data = fl.Batches(torch.ones(8, 2), 4)
    fl.fit(step, step.init(torch.nn.Linear(2, 1)), data, epochs=2, **arguments)


@pytest.mark.lightning("T22")
@pytest.mark.parametrize(
    ("terminal", "arguments", "shown"),
    [
        (True, {}, True),
        (True, {"progress": False}, False),
        (False, {}, False),
        (False, {"progress": True}, True),
    ],
)
def test_fit_shows_it_by_itself_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, arguments: Any, shown: bool
) -> None:
    out = Screen() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    run(**arguments)
    assert ("completed" in out.getvalue()) == shown
    if terminal:
        monkeypatch.setenv("CI", "true")
        before = out.getvalue()
        run()
        assert out.getvalue() == before


def test_one_of_the_callbacks_is_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Screen()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    run(callbacks=[fl.every(1, progress(names=["loss"]))])
    assert out.getvalue().count("completed") == 1 and "sgd.lr" not in out.getvalue()


def test_an_effect_can_be_used_again_and_closed_unopened(state: State) -> None:
    out = io.StringIO()
    effect = progress(file=out)
    effect.close("failed")
    for _ in range(2):
        effect.open(Run(step=None, state=state, total=0))
        effect.close("completed")
    assert out.getvalue().splitlines() == ["completed  epoch 0  batch 0  0 batches in 0.0 s"] * 2


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every_seconds=.* above 0, got 0"):
        progress(every_seconds=0)
