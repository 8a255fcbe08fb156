import os
from pathlib import Path

import pytest
import torch

from fnloop.store.commit import commit, discard, prepare, sweep, temporary_of
from fnloop.store.files import Disk
from fnloop.store.folders import best, latest, listing, target_of
from fnloop.store.load import load
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


def test_the_checkpoint_between_two_renames_is_found_under_its_old_name(tmp_path, monkeypatch):
    path = save(state_at(5, value=1.0), tmp_path, monitor=score(1.0))
    rename = os.replace

    def die_before_the_second(source, target):
        if str(target) == str(path):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", die_before_the_second)
    with pytest.raises(KeyboardInterrupt):
        save(state_at(5, value=2.0), tmp_path)
    monkeypatch.undo()
    assert not path.exists()
    like = state_at(0)
    for place in (path, tmp_path, latest(tmp_path), best(tmp_path)):
        assert load(place, like=like).params["bias"].tolist() == [1.0]

    sweep(tmp_path, DISK)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]
    assert load(path, like=like).params["bias"].tolist() == [1.0]
    save(state_at(5, value=3.0), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]
    assert load(path, like=like).params["bias"].tolist() == [3.0]


def test_commit_replaces_where_an_old_one_was_left_behind(tmp_path):
    target = target_of(tmp_path, 1)
    for name, text in (("step-00000001", "second"), (".step-00000001.old", "first")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    new = temporary_of(target)
    new.mkdir()
    (new / "x").write_text("third")
    commit(new, target, DISK)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    assert (target / "x").read_text() == "third"


def test_discard_deletes_and_can_be_called_again(tmp_path):
    path = save(state_at(1), tmp_path)
    (tmp_path / ".step-00000001.old").mkdir()
    discard(path, DISK)
    discard(path, DISK)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_gone_at_once_when_it_is_deleted(tmp_path, monkeypatch):
    path = save(state_at(1), tmp_path)

    def die(folder, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        discard(path, DISK)
    assert listing(tmp_path) == {}


def test_sweep_deletes_leftovers_alone(tmp_path):
    save(state_at(1), tmp_path)
    (tmp_path / ".step-00000002.tmp-0a1b2c3d").mkdir()
    (tmp_path / ".step-00000001.old").mkdir()
    (tmp_path / ".git").mkdir()
    sweep(tmp_path, DISK)
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == [".git", "step-00000001"]
    assert latest(tmp_path).name == "step-00000001"


def test_prepare_leaves_nothing_behind(tmp_path):
    prepare(tmp_path / "a" / "b", DISK)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/runs .*read-only run folder"):
        prepare(tmp_path / "file" / "runs", DISK)
    with pytest.raises(NotADirectoryError, match="No checkpoint can be written"):
        prepare(tmp_path / "file", DISK)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, read-only even for root")
def test_a_folder_that_exists_and_is_read_only_is_a_clear_error():
    with pytest.raises(OSError, match="No checkpoint can be written to /proc/self"):
        prepare(Path("/proc/self"), DISK)
