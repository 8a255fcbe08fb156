import os
import shutil

import pytest
import torch

import fnloop as fl
from fnloop.store.checkpoint_errors import CheckpointError, DamagedError
from fnloop.store.files import Disk
from fnloop.store.folders import best, latest, target_of
from fnloop.store.load import load
from fnloop.store.manifest import read_manifest
from fnloop.store.save import save
from fnloop.values.cursor import Cursor
from fnloop.values.start import start

DISK = Disk()


def state_at(count, value=0.0):
    state = start(torch.nn.Linear(2, 1), seed=0)
    params = {name: torch.full_like(p, value) for name, p in state.params.items()}
    return state.replace(params=params, cursor=Cursor(0, count, count).tensor())


def score(value, name="val/loss", mode="min"):
    return {"name": name, "mode": mode, "value": value}


@pytest.mark.lightning("K4")
def test_latest_is_the_one_with_the_highest_count(tmp_path):
    for count in (9, 100_000_000, 10):
        save(state_at(count), tmp_path)
    assert latest(tmp_path).name == "step-100000000"
    assert latest(str(tmp_path)) == latest(tmp_path)


def test_latest_and_best_of_nothing_are_none(tmp_path):
    assert latest(tmp_path) is None and best(tmp_path) is None
    assert latest(tmp_path / "gone") is None and best(tmp_path / "gone") is None
    save(state_at(1), tmp_path)
    assert best(tmp_path) is None


@pytest.mark.lightning("K4")
@pytest.mark.parametrize(
    ("mode", "values", "winner"),
    [
        ("min", [3.0, 1.0, 2.0], 2),
        ("max", [3.0, 1.0, 2.0], 1),
        ("min", [2.0, 1.0, 1.0], 2),
        ("max", [float("nan"), -float("inf"), float("nan")], 1),
        ("min", [float("nan"), 5.0], 2),
    ],
)
def test_best(tmp_path, mode, values, winner):
    for count, value in enumerate(values, 1):
        save(state_at(count), tmp_path, monitor=score(value, mode=mode))
    save(state_at(99), tmp_path)
    assert best(tmp_path) == target_of(tmp_path, winner)


def test_best_goes_by_what_the_newest_monitored(tmp_path):
    save(state_at(1), tmp_path, monitor=score(0.0, name="accuracy", mode="max"))
    save(state_at(2), tmp_path, monitor=score(0.7))
    save(state_at(3), tmp_path, monitor=score(0.8))
    assert best(tmp_path) == target_of(tmp_path, 2)


def test_hidden_and_foreign_entries_are_passed_over_in_silence(tmp_path, recwarn):
    save(state_at(1), tmp_path)
    for name in (".step-00000009.tmp-ab", "step-9x", "mystep-9", "logs"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert latest(tmp_path).name == "step-00000001"
    assert not recwarn.list


@pytest.mark.parametrize("damage", ["manifest", "tensors", "cut", "garbled"])
def test_incomplete_checkpoints_are_passed_over_with_a_warning(tmp_path, damage):
    save(state_at(1), tmp_path, monitor=score(1.0))
    path = save(state_at(2), tmp_path, monitor=score(0.0))
    if damage == "manifest":
        (path / "manifest.json").unlink()
    elif damage == "tensors":
        (path / "state.safetensors").unlink()
    elif damage == "cut":
        os.truncate(path / "state.safetensors", 100)
    else:
        (path / "manifest.json").write_text("{")
    for find in (latest, best):
        with pytest.warns(UserWarning, match="step-00000002 was passed over"):
            assert find(tmp_path).name == "step-00000001"


def test_what_is_no_checkpoint_is_a_clear_error(tmp_path):
    like = state_at(0)
    with pytest.raises(CheckpointError, match=r"There is no folder .*gone"):
        load(tmp_path / "gone", like=like)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        load(tmp_path / "file", like=like)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load(tmp_path / "empty", like=like)
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match="not a complete checkpoint: it is empty"):
        load(tmp_path / "step-00000001", like=like)
    (tmp_path / "step-00000001" / "state.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"it has no manifest\.json"):
        load(tmp_path / "step-00000001", like=like)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_manifest(tmp_path / "step-00000001")


def test_a_path_without_a_checkpoint_is_missing_not_damaged_and_a_similar_one_is_named(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    step = fl.pipe(lambda m, b: m(b).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(torch.nn.Linear(2, 1))
    fl.save(state, "runs/first")
    for path, message in [
        ("runs/frist", r"There is no folder runs/frist in .*\. Did you mean runs/first\?"),
        (tmp_path / "runs/frist", r"There is no folder /.*/frist\. Did you mean /.*/first\?"),
        ("runs", r"runs holds no complete checkpoint \(step-\.\.\.\)\. Did you mean runs/first\?"),
        ("elsewhere/first", r"There is no folder elsewhere/first in [^?]*$"),
    ]:
        with pytest.raises(FileNotFoundError, match=message) as missing:
            fl.load(path, like=state)
        assert isinstance(missing.value, fl.errors.CheckpointError)
        assert not isinstance(missing.value, DamagedError)
    fl.fit(step, state, [torch.ones(2, 2)], epochs=1, resume="runs/frist")
    assert "the run starts here. Did you mean runs/first?" in caplog.text
