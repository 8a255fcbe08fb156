"""What every tracker does, read back by its own package: points, what is shown, resumed runs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fnloop as fl
from fnloop.effects.effect import Run
from fnloop.trackers.shown import Shown
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Last
from fnloop.values.start import start
from fnloop.values.state import State
from tests.trackers.readers import CASES, Case, Kept, homes, prepared

assert homes  # a fixture
KINDS = [*CASES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a name of its own: trackio's project."""
    path = tmp_path / f"p{uuid.uuid4().hex[:8]}"
    path.mkdir()
    return path


def case(kind: str, homes: Path, folder: Path) -> Case:
    found = CASES[kind]
    if found.package is not None:
        pytest.importorskip(found.package)
    prepared(kind, homes, folder)
    return found


def at(count: int) -> State:
    return start(torch.nn.Linear(2, 1)).replace(cursor=Cursor(0, count, count).tensor())


def steps(effect: Any, counts: range) -> None:
    effect.open(Run(step=None, state=at(counts.start - 1), config={"lr": 0.1, "n": {"a": [1, 2]}}))
    more(effect, counts)


def more(effect: Any, counts: range) -> None:
    for count in counts:
        metrics = {"loss": Last(count / 8), "val/accuracy": Last(torch.tensor([0.5, count / 16]))}
        effect(at(count), metrics)


PIXELS = (np.arange(7 * 5 * 3) % 256).astype(np.uint8).reshape(7, 5, 3)
SOUND = np.stack([np.arange(-400, 400), np.arange(800)]).astype(np.int16)
VALUES = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOTE = "two words & <more>"


def shown(folder: Path) -> dict[str, Shown]:
    file = folder / "note.txt"
    file.write_text(NOTE)
    return {
        "picture": fl.trackers.Image(PIXELS, "a caption"),
        "grey": fl.trackers.Image(PIXELS[..., 0]),
        "words": fl.trackers.Text(NOTE),
        "sound": fl.trackers.Audio(SOUND, 8000),
        "bars": fl.trackers.Histogram(VALUES, bins=20),
        "note": fl.trackers.File(file),
    }


def check(found: list[Kept], takes: tuple[type[Shown], ...]) -> None:
    by_name = {kept.name: kept for kept in found}
    assert len(by_name) == len(found)
    kinds = fl.trackers
    names = {
        "picture": kinds.Image,
        "grey": kinds.Image,
        "words": kinds.Text,
        "sound": kinds.Audio,
        "bars": kinds.Histogram,
        "note": kinds.File,
    }
    assert set(by_name) == {name for name, kind in names.items() if kind in takes}
    assert all(kept.step == 3 for kept in found if kept.name != "note")
    if kinds.Image in takes:
        assert np.array_equal(by_name["picture"].value[..., :3], PIXELS)
        assert np.array_equal(by_name["grey"].value[..., 0], PIXELS[..., 0])
    if kinds.Audio in takes:
        assert np.array_equal(by_name["sound"].value, SOUND.T)
    if kinds.Text in takes:
        assert (
            by_name["words"].value.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
            == NOTE
        )
    if kinds.File in takes:
        assert by_name["note"].value == NOTE.encode()
    if kinds.Histogram in takes:
        counts, edges = np.histogram(VALUES.numpy(), 20)
        assert np.array_equal(by_name["bars"].value[0], counts)
        assert by_name["bars"].value[1] == pytest.approx(edges)


@pytest.mark.lightning("L1", "L2", "L3", "L4", "L8")
@pytest.mark.parametrize("kind", KINDS)
def test_points_and_what_is_shown_are_read_back_also_of_a_resumed_run(
    kind: str, homes: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = case(kind, homes, folder)
    tracker = found.make(folder)
    values = shown(folder)
    view = fl.trackers.show(lambda state, metrics: values if int(state.cursor[2]) == 3 else {})
    effect = fl.track(tracker, view, every=1)
    with caplog.at_level(logging.WARNING, "fnloop"):
        steps(effect, range(1, 5))
        effect.close("interrupted")
    left_out = {type(value) for value in values.values()} - set(tracker.takes)
    told = [record.message for record in caplog.records if record.name == "fnloop"]
    assert len(told) == len(left_out)
    assert all(text.startswith(f"{kind} takes no ") for text in told)

    again = found.make(folder)
    resumed = fl.track(again, every=1)
    resumed.recall(effect.memo())
    steps(resumed, range(5, 7))
    resumed.close("completed")
    assert again.id == tracker.id
    curves = {name.rpartition("/")[2]: curve for name, curve in found.curves(folder).items()}
    assert curves["loss"] == [(count, count / 8) for count in range(1, 7)]
    indexed = sorted(name for name in curves if name.startswith("accuracy"))
    assert len(indexed) == 2
    assert curves[indexed[1]] == [(count, count / 16) for count in range(1, 7)]
    check(found.kept(folder), tracker.takes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_that_is_resumed_has_each_step_once(
    kind: str, homes: Path, folder: Path
) -> None:
    found = case(kind, homes, folder)
    picture = fl.trackers.show(lambda state, metrics: {"p": fl.trackers.Image(PIXELS)})
    view = fl.every(2, picture)
    killed = fl.track(found.make(folder), view, every=1)
    steps(killed, range(1, 6))
    memo = killed.memo()  # of a checkpoint
    more(killed, range(6, 9))
    killed._close_workers()  # pyright: ignore
    for tracker in killed.trackers:
        tracker.close("killed")

    again = found.make(folder)
    resumed = fl.track(again, fl.every(2, picture), every=1)
    resumed.recall(memo)
    steps(resumed, range(6, 11))
    resumed.close("completed")
    (loss,) = [curve for name, curve in found.curves(folder).items() if name == "loss"]
    assert loss == [(count, count / 8) for count in range(1, 11)]
    if fl.trackers.Image in again.takes:
        pictures = sorted(kept.step or 0 for kept in found.kept(folder))
        assert pictures == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_fails_costs_no_point_and_no_picture(
    kind: str, homes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case(kind, homes, folder)
    tracker = found.make(folder)
    log, show, calls = tracker.log, tracker.show, iter(range(100))

    def failing(real: Any) -> Any:
        def call(*given: Any) -> None:
            if next(calls) in (1, 2, 5, 6):
                raise ConnectionError("away")
            real(*given)

        return call

    monkeypatch.setattr(tracker, "log", failing(log))
    monkeypatch.setattr(tracker, "show", failing(show))
    view = fl.trackers.show(lambda state, metrics: {"p": fl.trackers.Image(PIXELS)})
    effect = fl.track(tracker, view, every=1)
    with pytest.warns(UserWarning, match=f"{kind} failed at step .* Training goes on") as caught:
        steps(effect, range(1, 4))
        effect.close("completed")
    assert len(caught) == 1
    assert found.curves(folder)["loss"] == [(count, count / 8) for count in range(1, 4)]
    if fl.trackers.Image in tracker.takes:
        assert [kept.step for kept in found.kept(folder)] == [1, 2, 3]


KILLED = """
import os, signal, sys, time, torch, fnloop as fl
from pathlib import Path
from tests.trackers.test_every_tracker import STEP, DATA, trackers, written

folder = Path(sys.argv[1])

@fl.effect
def kill(state, metrics):
    if int(state.cursor[2]) == 14:
        while not all(written(kind, folder, 12) for kind in effect_kinds):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

effect = trackers(folder)
effect_kinds = [type(tracker).__name__ for tracker in effect.trackers]
state = STEP.init(lambda: torch.nn.Linear(2, 1), seed=0)
fl.fit(STEP, state, DATA, steps=20, progress=False,
       callbacks=[effect, fl.checkpoint(folder / "run", every=6, unit="step"), kill])
"""
STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
DATA = fl.Batches(torch.arange(48.0).reshape(24, 2) / 48, 2)


def trackers(folder: Path) -> fl.track:
    """All that are installed, in one effect."""
    made = []
    for found in CASES.values():
        try:
            if found.package is not None:
                __import__(found.package)
        except ImportError:
            continue
        made.append(found.make(folder))
    return fl.track(*made, fl.every(4, fl.trackers.histograms("weight")), every=1)


def written(kind: str, folder: Path, step: int) -> bool:
    """Whether the tracker has the point of a step on its disk; Aim's cannot be read meanwhile."""
    if kind == "Aim":
        return True
    return any(count >= step for count, _ in CASES[kind].curves(folder).get("loss", ()))


@pytest.mark.slow
def test_a_run_with_all_trackers_that_is_killed_and_resumed_has_the_points_of_one_that_is_not(
    homes: Path, folder: Path
) -> None:
    for kind in ("Aim", "MLflow"):
        prepared(kind, homes, folder)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder)]
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    losses: list[tuple[int, float]] = []
    plain = STEP.init(lambda: torch.nn.Linear(2, 1), seed=0)
    for state, metrics in fl.run(STEP, plain, DATA, steps=20):
        losses.append((int(state.cursor[2]), float(metrics["loss"])))

    effect = trackers(folder)
    resumed, _ = fl.fit(
        STEP,
        STEP.init(lambda: torch.nn.Linear(2, 1), seed=0),
        DATA,
        steps=20,
        resume=folder / "run",
        callbacks=[effect],
    )
    assert fl.tree_equal(resumed.replace(slots={}), state.replace(slots={}))
    for tracker in effect.trackers:
        found = CASES[type(tracker).__name__]
        curve = found.curves(folder)["loss"]
        assert [step for step, _ in curve] == [step for step, _ in losses]
        assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in losses])
