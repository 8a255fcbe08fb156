"""Locks between real processes, and what can be known of their owners."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fnloop.store import run_lock
from fnloop.store.files import Disk
from fnloop.store.run_lock import LOCK, Lock, check_free

HOLD = """
import sys, time
from pathlib import Path
from fnloop.store.files import Disk
from fnloop.store.run_lock import Lock
lock = Lock(Path(sys.argv[1]), Disk())
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def taken(folder: Path) -> Lock:
    lock = Lock(folder, Disk())
    lock.take()
    return lock


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def change(folder: Path, **entries: object) -> None:
    file = folder / LOCK
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def left_behind(folder: Path, **entries: object) -> None:
    """A lock that nobody renews, as by an owner that differs in `entries`."""
    lock = taken(folder)
    text = (folder / LOCK).read_text()
    lock.release()
    (folder / LOCK).write_text(text)
    change(folder, **entries)


def test_another_process_is_named_and_killed_ones_are_taken_over(tmp_path):
    process = holder(tmp_path)
    with pytest.raises(FileExistsError, match=rf"in use: process {process.pid} on .*, since 20"):
        taken(tmp_path)
    with pytest.raises(FileExistsError, match=rf"kill {process.pid}.* delete {tmp_path}/.lock"):
        check_free(tmp_path, Disk())
    os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.2)  # it is a zombie now: nobody has asked how it ended
    taken(tmp_path).release()
    process.communicate()
    assert not os.listdir(tmp_path)


def test_a_process_that_ends_gives_it_back(tmp_path):
    process = holder(tmp_path)
    process.communicate("")
    assert process.returncode == 0 and not os.listdir(tmp_path)


def test_a_number_that_was_given_to_a_later_process_is_not_the_owner(tmp_path):
    process = holder(tmp_path)
    born = json.loads((tmp_path / LOCK).read_text())["born"]
    change(tmp_path, born=born - 1)
    taken(tmp_path).release()
    process.kill()
    process.communicate()


def test_this_very_process_is_told_so(tmp_path):
    lock = taken(tmp_path)
    with pytest.raises(FileExistsError, match=r"in use by this very process .*loop.close\(\)"):
        taken(tmp_path)
    lock.release()
    taken(tmp_path).release()


def test_one_that_is_dropped_is_given_back_and_its_thread_ends(tmp_path):
    before = threading.active_count()
    lock = taken(tmp_path)
    assert os.listdir(tmp_path) == [LOCK] and threading.active_count() == before + 1
    del lock
    assert not os.listdir(tmp_path) and threading.active_count() == before


def test_a_fork_does_not_give_it_back(tmp_path):
    lock = taken(tmp_path)
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == [LOCK]
    lock.release()


@pytest.mark.parametrize("raw", ["", "{", "[1]", '{"token": 1}', "\0" * 300])
def test_what_a_power_loss_has_left_of_it_is_taken_over(tmp_path, raw):
    (tmp_path / LOCK).write_text(raw)
    (tmp_path / f"{LOCK}.0123").touch()
    taken(tmp_path).release()
    assert not os.listdir(tmp_path)


# Owners on other machines


def test_elsewhere_signs_of_life_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 1.0)
    left_behind(tmp_path, system="another", host="node7", pid=1)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.1):
            change(tmp_path, beat=time.time())

    check_free(tmp_path, Disk())  # it does not wait, and so cannot know
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(FileExistsError, match="process 1 on node7"):
            taken(tmp_path)
    finally:
        stop.set()
        thread.join()
    began = time.monotonic()
    taken(tmp_path).release()
    assert 0.9 < time.monotonic() - began < 10


def test_an_owner_elsewhere_that_was_last_seen_long_ago_is_not_waited_for(tmp_path):
    left_behind(tmp_path, system="another", beat=time.time() - 7200)
    began = time.monotonic()
    taken(tmp_path).release()
    assert time.monotonic() - began < 5


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    lock = taken(tmp_path)
    first = json.loads((tmp_path / LOCK).read_text())["beat"]
    end = time.monotonic() + 10
    while json.loads((tmp_path / LOCK).read_text())["beat"] == first:
        assert time.monotonic() < end
        time.sleep(0.05)
    lock.release()
    assert not os.listdir(tmp_path)


# While it is held


def test_a_renamed_folder_is_noticed_and_found_when_it_is_back(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    lock = taken(folder)
    folder.rename(tmp_path / "b")
    with pytest.raises(OSError, match=rf"a was renamed to {tmp_path}/b while the run goes on"):
        lock.check()
    folder.mkdir()  # another one of that name does not help
    with pytest.raises(OSError, match="was renamed to"):
        lock.check()
    folder.rmdir()
    (tmp_path / "b").rename(folder)
    lock.check()
    lock.release()


def test_a_taken_over_folder_is_noticed(tmp_path):
    lock = taken(tmp_path)
    change(tmp_path, token="another", pid=1)
    with pytest.raises(OSError, match="was taken over by process 1 on"):
        lock.check()
    lock.release()
    assert os.listdir(tmp_path) == [LOCK], "it is the other's"


def test_a_lock_that_was_deleted_by_hand_is_made_again(tmp_path):
    lock = taken(tmp_path)
    (tmp_path / LOCK).unlink()
    lock.check()
    assert os.listdir(tmp_path) == [LOCK]
    lock.release()


def test_a_release_that_is_broken_off_can_be_done_again(tmp_path, monkeypatch):
    """As by Ctrl-C in one of its instructions."""
    before = threading.active_count()
    lock = taken(tmp_path)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for place in ("getpid", "close"):
        monkeypatch.setattr(os, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.release()
        monkeypatch.undo()
    lock.release()
    assert not os.listdir(tmp_path) and threading.active_count() == before
