"""The lock of a run's folder: a file that names the process that writes there."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from pathlib import Path

from fnloop.store.files import Files
from fnloop.store.lock_owner import (
    HELD,
    PATIENCE,
    Owner,
    is_running,
    myself,
    read_owner,
    system_now,
    write_owner,
)
from fnloop.store.patience import patiently, write_may_pass
from fnloop.values.signals import let_out, passing_over
from fnloop.values.threads import begin

LOCK = ".lock"
BEAT = 15.0
"""Seconds from one sign of life of the owner to the next."""
LONG_AGO = 3600.0
"""Seconds since the last one after which nobody waits; more than clocks differ."""
_log = logging.getLogger("fnloop")


class Lock:
    """Holds a folder from `take` until `release`, the end of the process, or its own end.

    Another process that finds the lock asks whether its owner lives. On the same system the process
    table tells (a process that was given the same number later has started later). Elsewhere the
    owner's signs of life tell: a thread renews the file.

    Args:
        folder: The folder; it exists.
        files: The file system.
        supersedes: Whether to take it from an earlier run of this process, which was broken off
            and not closed (a notebook keeps its exception, and with that its loop).

    >>> import tempfile
    >>> from fnloop.store.files import Disk
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = Lock(Path(folder), Disk())
    ...     lock.take()
    ...     held = sorted(os.listdir(folder))
    ...     lock.release()
    ...     held, os.listdir(folder)
    (['.lock'], [])
    """

    def __init__(self, folder: Path, files: Files, supersedes: bool = False) -> None:
        self._folder, self._files, self._path = folder, files, folder / LOCK
        self._me, self._supersedes = myself(), supersedes
        self._descriptor: list[int] = []  # by it the folder is known again after a rename
        # A queue of C: an exception from a signal handler could leave an `Event` locked.
        stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        # None of them may refer to the lock: a run that is dropped without closing gives it back.
        held = (self._path, files, self._me, stop)
        self._thread = threading.Thread(target=_beat, args=held, name="fnloop-lock", daemon=True)
        self._held = (*held, self._thread, self._descriptor)
        self._dropped = weakref.finalize(self, _release, *self._held)

    def take(self) -> None:
        """Lock the folder; whatever comes of it, `release` ends it.

        Raises:
            FileExistsError: It is held, by a process that lives as far as can be known.
            OSError: The lock cannot be written.
        """
        HELD.add(self._me.token)
        patiently(self._own, write_may_pass)
        self._descriptor += _descriptor_of(self._folder, self._files)
        begin(self._thread.start)

    def release(self) -> None:
        """Unlock the folder. If an exception breaks it off, it can be called again."""
        _release(*self._held)
        self._dropped.detach()

    def check(self) -> None:
        """Make sure that the folder is still held; one that was deleted may be made again.

        Raises:
            OSError: The folder was renamed, or another process has taken it.
        """
        if place := self._moved():
            raise OSError(
                f"the folder {self._folder} was renamed{place} while the run goes on. Rename it "
                "back, and the next save finds it"
            )
        other = None
        with passing_over(OSError):  # an error that passes
            other = read_owner(self._path, self._files)
            if other is None and self._files.exists(self._folder):
                write_owner(self._path, self._files, self._me)
        if isinstance(other, Owner) and other.token != self._me.token:
            raise OSError(f"the folder {self._folder} was taken over by {other}")

    def _own(self) -> None:
        for _ in range(8):
            owner = read_owner(self._path, self._files)
            if owner is None:
                with contextlib.suppress(FileExistsError):
                    write_owner(self._path, self._files, self._me)
                continue
            if owner == "" and _still(self._path, self._files, owner, 1.0):
                self._files.remove(self._path)  # its writer died, or the power was lost
            if not isinstance(owner, Owner):
                continue
            if owner.token == self._me.token:
                self._tidy()
                return
            earlier = self._supersedes and _is_mine(owner)
            if not earlier and _lives(owner, self._path, self._files):
                raise FileExistsError(_held(self._folder, owner))
            if not earlier:
                _log.warning("%s was left by %s, which is gone: taken over", self._path, owner)
            with contextlib.suppress(FileNotFoundError):
                self._files.remove(self._path)
        raise FileExistsError(
            f"The lock {self._path} changes all the time: others want the folder."
        )

    def _tidy(self) -> None:
        for name in self._files.names(self._folder):
            if name.startswith(f"{LOCK}."):  # an owner was killed while it renewed its lock
                with passing_over(OSError):
                    self._files.remove(self._folder / name)

    def _moved(self) -> str:
        """Where the folder is now, as text; empty if it is in its place, or was deleted."""
        if not self._descriptor:
            return ""
        there = os.fstat(self._descriptor[0])
        with passing_over(OSError):
            if os.path.samestat(there, os.stat(self._folder)):
                return ""
        if not there.st_nlink:
            return ""
        try:
            return f" to {os.readlink(f'/proc/self/fd/{self._descriptor[0]}')}"
        except OSError as error:
            let_out(error)
            return ", or moved,"


def check_free(folder: Path, files: Files, supersedes: bool = False) -> None:
    """Raise at once if a process on this system holds `folder`; `supersedes` as for `Lock`.

    Raises:
        FileExistsError: It is held.
    """
    owner = read_owner(folder / LOCK, files)
    if supersedes and isinstance(owner, Owner) and _is_mine(owner):
        return
    if isinstance(owner, Owner) and owner.system == system_now() and is_running(owner):
        raise FileExistsError(_held(folder, owner))


def _lives(owner: Owner, path: Path, files: Files) -> bool:
    if owner.system == system_now():
        return is_running(owner)
    if abs(time.time() - owner.beat) > LONG_AGO:
        return False
    _log.warning("%s is held by %s: waiting up to %g s for a sign of life", path, owner, PATIENCE)
    return not _still(path, files, owner, PATIENCE)


def _still(path: Path, files: Files, owner: Owner | str, seconds: float) -> bool:
    """Whether the file stays as it is for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(0.2, seconds))
        if read_owner(path, files) != owner:
            return False
    return True


def _held(folder: Path, owner: Owner) -> str:
    if owner.pid == os.getpid():
        return (
            f"{folder} is in use by this very process (since {owner.since[11:19]} UTC): an earlier "
            "run in it was not closed. Close the loop over fl.run (loop.close()), wait for the "
            "other thread, or choose another folder."
        )
    return (
        f"{folder} is in use: {owner}, writes to it, and two runs would delete each other's "
        f"checkpoints. Wait for it, end it (kill {owner.pid}), or choose another folder. Ranks "
        "that train together share one folder: their step is fl.shard(step, fl.mesh()). If you "
        f"know that it is gone, delete {folder / LOCK}."
    )


def _drop(path: Path, files: Files, owner: Owner) -> None:
    """Remove the owner's lock; tries twice."""
    for _ in range(2):
        with passing_over(OSError):
            found = read_owner(path, files)
            if isinstance(found, Owner) and found.token == owner.token:
                files.remove(path)
            return


def _beat(path: Path, files: Files, owner: Owner, stop: queue.SimpleQueue[None]) -> None:
    while True:
        with contextlib.suppress(queue.Empty):
            stop.get(timeout=BEAT)
            return
        with contextlib.suppress(Exception):
            _renew(path, files, owner._replace(beat=time.time()))


def _renew(path: Path, files: Files, owner: Owner) -> None:
    found = read_owner(path, files)
    if not isinstance(found, Owner) or found.token != owner.token:
        return
    if not files.renames:
        write_owner(path, files, owner)
        return
    fresh = path.with_name(f"{path.name}.{owner.token}")
    with contextlib.suppress(FileNotFoundError):
        files.remove(fresh)
    write_owner(fresh, files, owner)
    files.rename(fresh, path)


def _release(
    path: Path,
    files: Files,
    owner: Owner,
    stop: queue.SimpleQueue[None],
    thread: threading.Thread,
    descriptor: list[int],
) -> None:
    if os.getpid() != owner.pid:  # a fork, which has a copy
        return
    stop.put(None)
    try:
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(PATIENCE)
    finally:
        while descriptor:
            os.close(descriptor.pop())
        HELD.discard(owner.token)
        _drop(path, files, owner)


def _is_mine(owner: Owner) -> bool:
    """Whether an owner is this very process."""
    me = myself()
    return (owner.system, owner.pid, owner.born) == (me.system, me.pid, me.born)


def _descriptor_of(folder: Path, files: Files) -> list[int]:
    """The folder's; empty where there is none."""
    if not files.renames or os.name == "nt":
        return []
    try:
        return [os.open(folder, os.O_RDONLY)]
    except OSError:  # it is not on this machine's disk
        return []
