from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
import torch

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
        "epoch 3/3  batch 1/4  loss 8  lr 0.0003  val/loss 0.25  0.25 it/s",
        "epoch 3/3  batch 4/4  loss 11  lr 0.0003  val/loss 0.25  0.25 it/s",
        "completed  epoch 3/3  batch 4/4  6 batches in 25.0 s  loss 11  lr 0.0003  val/loss 0.25",
    ]


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


def test_the_reason_of_a_stop_is_in_the_last_line(state: State) -> None:
    out = io.StringIO()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state))
    moved = state.replace(cursor=Cursor(0, 1, 1).tensor())
    effect(moved, {"loss": Mean(1.0, 1), "stop": stop(True, "no improvement")})
    effect.close("stopped")
    assert out.getvalue().startswith("stopped (no improvement)  epoch 1")


def test_on_a_terminal_there_is_a_bar(state: State, clock: list[float]) -> None:
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state, batches=50, total=200))
    for count in range(1, 201):
        clock[0] += 0.01
        epoch, index = divmod(count, 50)
        effect(state.replace(cursor=Cursor(epoch, index, count).tensor()), metrics(count))
    effect.close("completed")
    frames = [frame for frame in out.getvalue().split("\r") if frame.strip()]
    assert len(frames) <= 24  # 2 seconds at 10 a second, the first and the last
    assert re.search(r"epoch 1/4.*\b11/200 .*loss=6.5, lr=0.0003", frames[2])
    assert "skipped" not in out.getvalue()
    *bar, last = out.getvalue().rstrip("\n").split("\n")
    assert "200/200" in bar[-1]
    assert last.startswith("completed  epoch 4/4  batch 50/50  200 batches in 2.0 s  loss ")


def test_an_endless_run_has_a_bar_without_an_end(state: State) -> None:
    out = Screen()
    effect = progress(file=out)
    effect.open(Run(step=None, state=state))
    effect(state.replace(cursor=Cursor(0, 1, 1).tensor()), metrics(1))
    effect.close("interrupted")
    assert "epoch 1: 1batch" in out.getvalue()


def test_an_effect_can_be_used_again_and_closed_unopened(state: State) -> None:
    out = io.StringIO()
    effect = progress(file=out)
    effect.close("failed")
    for _ in range(2):
        effect.open(Run(step=None, state=state, total=0))
        effect.close("completed")
    assert out.getvalue().splitlines() == ["completed  epoch 0  batch 0  0 batches in 0.0 s"] * 2


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every_seconds=0"):
        progress(every_seconds=0)
