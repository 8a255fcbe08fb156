"""Each call of a save fails in turn: a clear error, nothing lost, and the run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.effects.effect import Run
from fnloop.store import patience
from fnloop.store.checkpoint import checkpoint
from fnloop.store.checkpoint_errors import CheckpointError, UnreadableError
from fnloop.store.commit import sweep
from fnloop.store.files import Disk
from fnloop.store.folders import best, latest, listing
from fnloop.store.load import load
from fnloop.store.manifest import read_manifest
from fnloop.store.save import save
from fnloop.trees.equal import tree_equal
from fnloop.values.cursor import Cursor
from fnloop.values.start import start
from fnloop.values.state import State

from .faulty import Faulty, Killed
from .preloaded import faultio

__all__ = ["faultio"]

DISK = Disk()
ERRORS = [errno.ENOSPC, errno.EIO]
LIKE = start(torch.nn.Linear(3, 2), seed=0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here, so nothing waits for the disk; the calls are made, and may fail."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(patience, "DELAYS", (0.0, 0.0))


def state_at(count: int, version: int = 0) -> State:
    params = {name: torch.full_like(p, count + version / 8) for name, p in LIKE.params.items()}
    return LIKE.replace(params=params, cursor=Cursor(0, count, count).tensor())


def visible(folder: Path) -> list[str]:
    """What every reader sees: checkpoints, by whatever name."""
    return sorted(path.name for path in listing(folder).values())


def check_whole(folder: Path, state: State) -> None:
    assert tree_equal(load(folder, like=LIKE), state)


def check_tidy(folder: Path) -> None:
    """Nothing but checkpoints is left once the next run has begun."""
    sweep(folder, DISK)
    for name in os.listdir(folder):
        assert name.startswith("step-"), name
        assert sorted(os.listdir(folder / name)) == ["manifest.json", "state.safetensors"]


def calls_of(work: Callable[[Faulty], Any]) -> list[tuple[str, str]]:
    files = Faulty(DISK)
    work(files)
    return files.calls


Attempt = tuple[Path, Faulty, State]  # a folder that has one checkpoint; what fails; what to save


def attempts(tmp_path: Path, fault: int | str) -> Iterator[Attempt]:
    """A save for each of its calls, once as a new checkpoint and once in the place of one."""
    for new in (state_at(2), state_at(1, version=1)):
        save(state_at(1), tmp_path / "count")
        calls = calls_of(lambda files: save(new, tmp_path / "count", files=files))  # noqa: B023
        shutil.rmtree(tmp_path / "count")
        assert len(calls) > 25
        for at in range(len(calls)):
            folder = tmp_path / "runs"
            save(state_at(1), folder)
            yield folder, Faulty(DISK, at, fault), new
            shutil.rmtree(folder)


# A save


@pytest.mark.parametrize("fault", ERRORS, ids=errno.errorcode.get)
def test_a_call_that_fails_is_a_clear_error_and_loses_nothing(tmp_path: Path, fault: int) -> None:
    failures = 0
    for folder, files, new in attempts(tmp_path, fault):
        place = f"step-{Cursor.of(new.cursor).count:08d}"
        try:
            save(new, folder, files=files)
        except OSError as error:
            failures += 1
            assert error.errno in (fault, errno.EIO)
            assert str(folder) in str(error) and os.strerror(fault) in str(error)
            assert place in str(error) or "No checkpoint can be written" in str(error)
            assert visible(folder) == ["step-00000001"], files.calls[files.at or 0]
            check_whole(folder, state_at(1))
            check_whole(folder / "step-00000001", state_at(1))
        else:  # it failed in tidying up, when the checkpoint was safe
            check_whole(folder, new)
        check_tidy(folder)
        save(new, folder)
        check_whole(folder, new)
    assert failures > 45


def test_a_call_that_falls_short_is_gone_on_with(tmp_path: Path) -> None:
    short = 0
    for folder, files, new in attempts(tmp_path, "short"):
        check_whole(save(new, folder, files=files), new)
        short += files.calls[files.at or 0][0] in ("write", "read")
    assert short >= 8


def test_a_disk_that_takes_and_gives_a_byte_at_a_time_is_enough(tmp_path: Path) -> None:
    files = Faulty(DISK, at=0, fault="short", onwards=True)
    check_whole(save(state_at(1), tmp_path, files=files), state_at(1))
    assert len(files.calls) > 1000


@pytest.mark.lightning("K7")
def test_a_process_that_is_killed_at_a_call_leaves_one_of_both(tmp_path: Path) -> None:
    kept = []
    for folder, files, new in attempts(tmp_path, "kill"):
        with pytest.raises(Killed):
            save(new, folder, files=files)
        found = load(folder, like=LIKE)
        kept.append(tree_equal(found, state_at(1)))
        assert kept[-1] or tree_equal(found, new)
        check_tidy(folder)
        assert tree_equal(load(folder, like=LIKE), found)
        check_whole(save(new, folder), new)
    assert any(kept) and not all(kept)


@pytest.mark.parametrize("fault", ERRORS, ids=errno.errorcode.get)
def test_a_disk_that_fails_from_some_call_on_loses_nothing(tmp_path: Path, fault: int) -> None:
    """What is done about the first failure fails too."""
    for folder, files, new in attempts(tmp_path, fault):
        files.onwards = True
        try:
            save(new, folder, files=files)
        except OSError:
            assert tree_equal(load(folder, like=LIKE), state_at(1)) or tree_equal(
                load(folder, like=LIKE), new
            )
        else:
            check_whole(folder, new)
        check_tidy(folder)
        check_whole(save(new, folder), new)


def test_what_cannot_be_read_again_is_not_acknowledged(tmp_path: Path) -> None:
    """The disk has taken every byte, and gives another one back."""

    class Forgetful(Disk):
        def open(self, path: Path) -> Any:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"?")
            return super().open(path)

    save(state_at(1), tmp_path)
    with pytest.raises(OSError, match=r"step-00000002 was not saved .*not what was written") as e:
        save(state_at(2), tmp_path, files=Forgetful())
    assert e.value.errno == errno.EIO
    assert os.listdir(tmp_path) == ["step-00000001"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    class Full(Disk):
        def create(self, path: Path) -> Any:
            path.symlink_to("/dev/full")
            return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)

    save(state_at(1), tmp_path)
    with pytest.raises(OSError, match=r"step-00000002 was not saved \(No space left on device\)"):
        save(state_at(2), tmp_path, files=Full())
    assert os.listdir(tmp_path) == ["step-00000001"]


# Reading


FLEETING = [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT]


@pytest.mark.parametrize("fault", FLEETING, ids=errno.errorcode.get)
def test_a_call_of_a_load_that_fails_once_is_tried_again(tmp_path: Path, fault: int) -> None:
    for count in (1, 2):
        save(state_at(count), tmp_path)
    calls = calls_of(lambda files: load(tmp_path, like=LIKE, files=files))
    assert len(calls) > 10
    for at in range(len(calls)):
        assert tree_equal(load(tmp_path, like=LIKE, files=Faulty(DISK, at, fault)), state_at(2))
        assert latest(tmp_path, files=Faulty(DISK, at, fault)) == tmp_path / "step-00000002"


@pytest.mark.parametrize("fault", FLEETING, ids=errno.errorcode.get)
def test_what_cannot_be_read_now_is_an_error_and_no_older_checkpoint_is_taken(
    tmp_path: Path, fault: int
) -> None:
    for count in (1, 2):
        save(state_at(count), tmp_path)
    readers: list[Callable[[Any], Any]] = [
        lambda files: load(tmp_path, like=LIKE, files=files),
        lambda files: latest(tmp_path, files=files),
        lambda files: best(tmp_path, files=files),
    ]
    for reader in readers:
        for at in range(len(calls_of(reader)) - 1):  # the last one closes the file
            with pytest.raises(UnreadableError, match=f"{tmp_path}.* cannot be read now") as caught:
                reader(Faulty(DISK, at, fault, onwards=True))
            assert caught.value.errno == fault and os.strerror(fault) in str(caught.value)
            assert isinstance(caught.value, CheckpointError)


@pytest.mark.skipif(os.name != "posix", reason="needs descriptors")
def test_too_many_open_files_are_not_damage(tmp_path: Path) -> None:
    import resource

    for count in (1, 2):
        save(state_at(count), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(tmp_path, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(UnreadableError, match="Too many open files"):
            load(tmp_path, like=LIKE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert tree_equal(load(tmp_path, like=LIKE), state_at(2))


def test_what_is_not_there_is_damage_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "DELAYS", (60.0,))
    for count in (1, 2):
        save(state_at(count), tmp_path)
    (tmp_path / "step-00000002" / "state.safetensors").unlink()
    with pytest.warns(UserWarning, match="step-00000002 was skipped"):
        assert tree_equal(load(tmp_path, like=LIKE), state_at(1))


# A run


def loss(model: Any, batch: Any) -> Any:
    return (model(batch[0]) - batch[1]).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.05)))
GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(12, size, generator=GENERATOR) for size in (3, 2))
BEGIN = STEP.init(torch.nn.Linear(3, 2), seed=0)


def train(
    folder: Path, files: Any, steps: int = 3, others: Any = (), **settings: Any
) -> tuple[State, list[str]]:
    """A run that saves after every step, and what it warns of."""
    effect = checkpoint(folder, files=files, every=1, unit="step", **{"keep": 2, **settings})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = fl.Batches((X, Y), batch_size=4, seed=1)
        state, _ = fl.fit(STEP, BEGIN, data, steps=steps, callbacks=[effect, *others])
    return state, [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def trained() -> State:
    state, _ = fl.fit(STEP, BEGIN, fl.Batches((X, Y), batch_size=4, seed=1), steps=3)
    return state


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("fault", [*ERRORS, "short"])
def test_a_run_goes_on_whatever_call_fails(
    tmp_path: Path, trained: State, fault: int | str, background: bool
) -> None:
    calls = calls_of(lambda files: train(tmp_path / "count", files, background=background))
    opened = len(calls_of(lambda files: open_and_close(tmp_path / "open", files)))
    assert len(calls) > 90
    step = 5 if fault == "short" or background else 2
    for at in range(opened, len(calls), step):
        folder = tmp_path / str(at)
        state, warned = train(folder, Faulty(DISK, at, fault), background=background)
        assert tree_equal(state, trained)
        if fault == "short":
            assert not warned
        for text in warned:
            assert text.startswith("checkpoint: ") and os.strerror(int(fault)) in text
        assert len(warned) <= 1 or "cannot be deleted" in warned[0], calls[at]
        found = Cursor.of(load(folder, like=BEGIN).cursor).count
        assert found == 3 or (found == 2 and "step-00000003 was not saved" in warned[0])
        check_tidy(folder)
        assert len(os.listdir(folder)) <= 2
        again, warned = train(folder, DISK, overwrite=True)
        assert tree_equal(again, trained) and not warned
        assert visible(folder) == ["step-00000002", "step-00000003"]


def open_and_close(folder: Path, files: Any) -> None:
    effect = checkpoint(folder, files=files, every=1, unit="step")
    try:
        effect.open(Run(step=None, state=BEGIN, effects=[effect]))
    finally:  # as a run does it
        effect.close("completed")


@pytest.mark.parametrize("fault", ERRORS, ids=errno.errorcode.get)
def test_a_run_that_cannot_begin_to_save_does_not_begin(tmp_path: Path, fault: int) -> None:
    calls = calls_of(lambda files: open_and_close(tmp_path / "count", files))
    failures = 0
    for at in range(len(calls)):
        try:
            open_and_close(tmp_path / str(at), Faulty(DISK, at, fault, onwards=True))
        except OSError as error:
            failures += 1
            assert error.errno == fault and os.strerror(fault) in str(error)
            assert str(tmp_path) in str(error)
        open_and_close(tmp_path / str(at), DISK)
        assert os.listdir(tmp_path / str(at)) == []
    assert failures >= 8


@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_if_all_calls_fail_for_good(
    tmp_path: Path, trained: State, background: bool
) -> None:
    opened = len(calls_of(lambda files: open_and_close(tmp_path / "open", files)))
    for at in (opened, opened + 15, opened + 40):
        folder = tmp_path / str(at)
        files = Faulty(DISK, at, errno.EIO, onwards=True)
        state, warned = train(folder, files, background=background)
        assert tree_equal(state, trained)
        assert 1 <= len(warned) <= 3, "once for a disk that fails, and once at the end"
        assert all(text.startswith("checkpoint: ") for text in warned)
        assert background or "The run continues" in warned[0] or "cannot be deleted" in warned[0]
        (folder / ".lock").unlink(missing_ok=True)  # the next run finds that its owner is gone
        check_tidy(folder)


def test_what_a_background_save_meets_is_told_at_the_next_step(tmp_path: Path) -> None:
    seen: list[tuple[int, list[str]]] = []
    wait = threading.Event()

    class Slow(Disk):
        """Its second checkpoint fails, and only once it is waited for."""

        def rename(self, old: Path, new: Path) -> None:
            if new.name == "step-00000002":
                assert wait.wait(60)
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(new))
            super().rename(old, new)

    effect = checkpoint(tmp_path, keep=None, every=1, unit="step", background=True, files=Slow())
    effect.open(Run(step=None, state=state_at(0), effects=[effect]))
    for count in (1, 2, 3, 4):
        if count == 4:
            wait.set()
            worker: Any = effect._worker
            while not all(job.done() for job in worker._jobs):
                threading.Event().wait(0.001)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run: Any = effect._run
            run.state = state_at(count)
            effect(run.state, {})
        seen.append((count, [str(warning.message) for warning in caught]))
    assert [(count, len(texts)) for count, texts in seen] == [(1, 0), (2, 0), (3, 0), (4, 1)]
    assert "step-00000002 was not saved (Input/output error)" in seen[-1][1][0]
    effect.close("completed")
    assert visible(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]
    check_whole(tmp_path, state_at(4))
    assert read_manifest(tmp_path / "step-00000004")["status"] == "completed"
    created = [(tmp_path / name).stat().st_ctime_ns for name in visible(tmp_path)]
    assert created == sorted(created), "in their order"


def test_a_folder_that_is_deleted_under_the_run_is_made_again(
    tmp_path: Path, trained: State
) -> None:
    folder = tmp_path / "runs" / "a"

    @fl.effect
    def tidy(state: State, metrics: Any) -> None:
        if int(state.cursor[2]) < 3:
            shutil.rmtree(folder.parent)

    state, warned = train(folder, DISK, others=[tidy])
    assert tree_equal(state, trained) and not warned
    assert visible(folder) == ["step-00000003"]
    assert tree_equal(load(folder, like=BEGIN), trained)


def test_a_file_system_that_becomes_read_only(tmp_path: Path, trained: State) -> None:
    class ReadOnly(Disk):
        def make(self, folder: Path) -> None:
            if (tmp_path / "step-00000001").exists():
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
            super().make(folder)

    state, warned = train(tmp_path, ReadOnly())
    assert tree_equal(state, trained)
    assert f"No checkpoint can be written to {tmp_path} (Read-only file system)" in warned[0]
    assert visible(tmp_path) == ["step-00000001"]


def test_a_run_goes_on_when_files_may_not_grow(tmp_path: Path, trained: State) -> None:
    """The system takes a part of what is written, and fails at the next call."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @fl.effect
    def limit(state: State, metrics: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))

    try:
        state, warned = train(tmp_path, DISK, others=[limit])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tree_equal(state, trained)
    assert "step-00000002 was not saved (File too large)" in warned[0]
    assert os.listdir(tmp_path) == ["step-00000001"]
    check = load(tmp_path, like=BEGIN)
    assert Cursor.of(check.cursor).count == 1


# System calls


SCRIPT = """
import collections, ctypes, errno, json, os, shutil, sys
from pathlib import Path
import torch
from fnloop.store import patience
from fnloop.store.checkpoint import checkpoint
from fnloop.store.load import load
from fnloop.store.save import save
from fnloop.store.files import Disk
from fnloop.store.commit import sweep
from fnloop.store.folders import best, latest, listing
from fnloop.trees.equal import tree_equal
from fnloop.values.cursor import Cursor
from fnloop.values.start import start

torch.set_num_threads(1)
root = sys.argv[1]
library = ctypes.CDLL(None)
library.failed.restype = ctypes.c_char_p
like = start(torch.nn.Linear(3, 2), seed=0)

def state_at(count, version=0):
    params = {name: torch.full_like(p, count + version / 8) for name, p in like.params.items()}
    return like.replace(params=params, cursor=Cursor(0, count, count).tensor())

def check(folder, expected, what):
    assert tree_equal(load(folder, like=like), expected), what

RETRIED = ("open", "read", "write", "fsync")  # by Python, when a signal has come
faults = collections.Counter()
for fault in (errno.ENOSPC, errno.EIO, errno.EINTR, 1000):
    for new in (state_at(2), state_at(1, version=1)):
        for at in range(10**6):
            folder = os.path.join(root, "runs")
            save(state_at(1), folder)
            library.arm(at, fault, root.encode())
            try:
                save(new, folder)
                error = None
            except OSError as caught:
                error = caught
            calls = library.disarm()
            what = (at, fault, library.failed().decode(), repr(error))
            if error is None:
                check(folder, new, what)
            else:
                assert fault != 1000, what
                assert fault != errno.EINTR or what[2] not in RETRIED, what
                assert error.errno and "step-" in str(error) or folder in str(error), what
                assert [p.name for p in listing(folder).values()] == ["step-00000001"], what
                check(folder, state_at(1), what)
            sweep(Path(folder), Disk())
            assert all(name.startswith("step-") for name in os.listdir(folder)), what
            save(new, folder)
            check(folder, new, what)
            shutil.rmtree(folder)
            if calls <= at:
                break
            faults["errors" if error else "harmless"] += 1
            faults[what[2]] += 1
print(json.dumps(faults))
"""


def test_each_system_call_of_a_save_may_fail(tmp_path: Path, faultio: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "LD_PRELOAD": str(faultio),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    faults = json.loads(done.stdout)
    print("\nsystem calls:", faults)
    assert faults["errors"] > 60
    for call in ("open", "write", "fsync", "close", "rename", "mkdir", "read", "rmdir"):
        assert faults[call] >= 2, call
