"""A smoke run goes through everything once, and leaves nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import fnloop as fl


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))


def state():
    return STEP.init(lambda: torch.nn.Linear(2, 1), seed=0)


def data(examples=80):
    return fl.Batches(torch.randn(examples, 2, generator=torch.Generator().manual_seed(0)), 4)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)


def left():
    return sorted(str(path) for path in Path().rglob("*") if path.name != "temporary")


class Counted:
    """A loss that counts its calls on validation data."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, x):
        self.calls += 1
        return loss(model, x)


@pytest.mark.lightning("T8")
def test_everything_comes_once_and_no_file_is_left():
    counted, seen, finished = Counted(), [], []

    class Watch(fl.base.Effect):
        def __call__(self, state, metrics):
            seen.append((int(state.cursor[2]), sorted(metrics)))

        def close(self, status):
            finished.append(status)

    callbacks = [
        fl.every(500, fl.validate(counted, {"a": data(), "b": data()}, params="ema")),
        fl.every(3.5, fl.validate(counted, data(), name="test"), unit="epoch"),
        fl.every(3600, fl.validate(counted, data(), name="eval"), unit="second"),
        fl.early_stopping("val/a/loss", patience=3),
        fl.checkpoint("runs/a", monitor="val/a/loss", every=3600, unit="second"),
        fl.checkpoint("runs/b", every=1000, unit="step", background=True),
        fl.track(fl.trackers.CSV("metrics.csv"), fl.trackers.JSONL("metrics.jsonl")),
        fl.every(1000, Watch()),
    ]
    start = state()
    after, history = fl.fit(
        STEP, start, data(), epochs=100, min_epochs=50, smoke=True, callbacks=callbacks
    )
    assert left() == []
    assert after.cursor.tolist() == [1, 0, 2] and history.status == "completed"
    # One for an example of the metrics, and two batches of each of four sets.
    assert counted.calls == 4 * (1 + 2)
    [(count, names)] = seen
    assert count == 2 and {"val/a/loss", "val/b/loss", "test/loss", "eval/loss"} <= {*names}
    assert finished == ["completed"] and "early_stopping" in names
    assert start == state()  # the given one is as it was


def test_it_saves_and_finds_what_cannot_be_saved():
    class Broken(fl.base.Effect):
        ranks = "all"

        def __init__(self):
            self.saved = []

        def open(self, run):
            self.folders = [e.saves_to for e in run.effects if e.saves_to]

        def __call__(self, state, metrics):
            pass

        def close(self, status):
            self.saved = [sorted(p.name for p in folder.iterdir()) for folder in self.folders]

    broken = Broken()
    fl.fit(STEP, state(), data(), steps=9, smoke=True, callbacks=[fl.checkpoint("a"), broken])
    assert "step-00000002" in broken.saved[0]
    callbacks = [fl.every(500, fl.validate(loss, data())), fl.checkpoint("a", monitor="val/los")]
    with pytest.raises(ValueError, match="val/los"):
        fl.fit(STEP, state(), data(), epochs=9, smoke=True, callbacks=callbacks)
    assert left() == []


def test_an_error_in_a_rare_callback_is_found_at_once():
    def broken(state, metrics):
        raise RuntimeError("it was never tried")

    with pytest.raises(RuntimeError, match="never tried"):
        fl.fit(
            STEP,
            state(),
            data(),
            epochs=100,
            smoke=True,
            callbacks=[fl.checkpoint("a"), fl.every(10_000, broken)],
        )
    assert left() == []


def test_a_run_in_the_folder_stays_as_it_is():
    saving = fl.checkpoint("runs/a")
    fl.fit(STEP, state(), data(), epochs=1, callbacks=[saving])
    before = {path: Path(path).stat().st_mtime_ns for path in left()}
    again = [fl.checkpoint("runs/a")]
    fl.fit(STEP, state(), data(), epochs=9, smoke=True, callbacks=again, resume="runs/a")
    fl.fit(STEP, state(), data(), epochs=9, smoke=True, callbacks=again, overwrite=True)
    assert {path: Path(path).stat().st_mtime_ns for path in left()} == before


def test_data_that_is_read_once_and_compiled_steps():
    batches = (torch.ones(4, 2) for _ in range(5))
    after, _ = fl.fit(STEP, state(), batches, epochs=100, smoke=True)
    assert after.cursor.tolist() == [1, 0, 2] and len(list(batches)) == 3
    fast = fl.compile(STEP, steps=8, backend="aot_eager")
    callbacks = [fl.every(500, fl.validate(loss, data()))]
    after, history = fl.fit(fast, state(), data(), epochs=9, smoke=True, callbacks=callbacks)
    assert after.cursor.tolist() == [1, 0, 2] and history.steps("val/loss") == [2]


def test_an_effect_says_what_takes_its_place():
    class Writes(fl.base.Effect):
        def __init__(self, folder):
            self.folder = Path(folder)

        def smoke(self, folder):
            return None if self.folder.name == "none" else Writes(folder)

        def __call__(self, state, metrics):
            self.folder.mkdir(exist_ok=True, parents=True)
            (self.folder / "file").touch()

    both = [Writes("here"), fl.every(9, Writes("none"))]
    fl.fit(STEP, state(), data(), epochs=1, smoke=True, callbacks=both)
    assert left() == []
