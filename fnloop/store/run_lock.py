"""The lock of a run's folder: a file that names the process that writes there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.store.files import Files, write_all

LOCK = ".lock"
BEAT = 15.0
"""Seconds from one sign of life of the owner to the next."""
PATIENCE = 60.0
"""Seconds without one after which an owner on another machine is taken for dead."""
LONG_AGO = 3600.0
"""Seconds since the last one after which nobody waits; more than clocks differ."""
_LARGEST = 1 << 16
_log = logging.getLogger("fnloop")


class Owner(NamedTuple):
    """Who holds a lock.

    Attributes:
        token: Of this lock alone.
        pid, host: The process.
        system: The running system in which `pid` means this process; see `_system`.
        born: When the process started, in the system's ticks; None if that cannot be known.
        since: When the lock was taken, as text.
        beat: The owner's clock at its last sign of life.
    """

    token: str
    pid: int
    host: str
    system: str
    born: int | None
    since: str
    beat: float

    def __str__(self) -> str:
        host = "".join(c for c in self.host if c.isprintable())[:80]
        return f"process {self.pid} on {host}, since {self.since[:19].replace('T', ' ')} UTC"


class Lock:
    """Holds a folder until `release`, the end of the process, or its own end.

    Another process that finds the lock asks whether its owner lives. On the same system the process
    table tells (a process that was given the same number later has started later). Elsewhere the
    owner's signs of life tell: a thread renews the file.

    Args:
        folder: The folder; it exists.
        files: The file system.

    Raises:
        FileExistsError: It is held, by a process that lives as far as can be known.
        OSError: The lock cannot be written.

    >>> import tempfile
    >>> from fnloop.store.files import Disk
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = Lock(Path(folder), Disk())
    ...     held = sorted(os.listdir(folder))
    ...     lock.release()
    ...     held, os.listdir(folder)
    (['.lock'], [])
    """

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files, self._path = folder, files, folder / LOCK
        self._me = _myself()
        try:
            self._take()
        except BaseException:
            _drop(self._path, files, self._me)
            raise
        self._descriptor = _descriptor_of(folder, files)
        stop = threading.Event()
        # Neither may refer to the lock: a run that is dropped without closing gives it back.
        held = (self._path, files, self._me, stop)
        thread = threading.Thread(target=_beat, args=held, name="fnloop-lock", daemon=True)
        thread.start()
        self.release = weakref.finalize(self, _release, *held, thread, self._descriptor)

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
        with contextlib.suppress(OSError):  # an error that passes
            other = _read(self._path, self._files)
            if other is None and self._files.exists(self._folder):
                _write(self._path, self._files, self._me)
        if isinstance(other, Owner) and other.token != self._me.token:
            raise OSError(f"the folder {self._folder} was taken over by {other}")

    def _take(self) -> None:
        for _ in range(8):
            owner = _read(self._path, self._files)
            if owner is None:
                with contextlib.suppress(FileExistsError):
                    _write(self._path, self._files, self._me)
                continue
            if owner == "" and _still(self._path, self._files, owner, 1.0):
                self._files.remove(self._path)  # its writer died, or the power was lost
            if not isinstance(owner, Owner):
                continue
            if owner.token == self._me.token:
                self._tidy()
                return
            if _lives(owner, self._path, self._files):
                raise FileExistsError(_held(self._folder, owner))
            _log.warning("%s was left by %s, which is gone: taken over", self._path, owner)
            with contextlib.suppress(FileNotFoundError):
                self._files.remove(self._path)
        raise FileExistsError(
            f"The lock {self._path} changes all the time: others want the folder."
        )

    def _tidy(self) -> None:
        for name in self._files.names(self._folder):
            if name.startswith(f"{LOCK}."):  # an owner was killed while it renewed its lock
                with contextlib.suppress(OSError):
                    self._files.remove(self._folder / name)

    def _moved(self) -> str:
        """Where the folder is now, as text; empty if it is in its place, or was deleted."""
        if self._descriptor is None:
            return ""
        there = os.fstat(self._descriptor)
        with contextlib.suppress(OSError):
            if os.path.samestat(there, os.stat(self._folder)):
                return ""
        if not there.st_nlink:
            return ""
        try:
            return f" to {os.readlink(f'/proc/self/fd/{self._descriptor}')}"
        except OSError:
            return ", or moved,"


def check_free(folder: Path, files: Files) -> None:
    """Raise at once if a process on this system holds `folder`.

    Raises:
        FileExistsError: It is held.
    """
    owner = _read(folder / LOCK, files)
    if isinstance(owner, Owner) and owner.system == _system() and _is_running(owner):
        raise FileExistsError(_held(folder, owner))


def _myself() -> Owner:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    born = _born(pid)
    return Owner(uuid.uuid4().hex, pid, socket.gethostname(), _system(), born, now, time.time())


def _system() -> str:
    """What tells whether process numbers mean the same: the boot, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if it cannot be known.

    Raises:
        ProcessLookupError: There is no such process, or it has ended and nobody has asked how.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        os.kill(pid, 0)
        return None
    except OSError:
        return None
    state, *fields = stat.rpartition(b")")[2].split()
    if state in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[18])


def _is_running(owner: Owner) -> bool:
    if owner.pid == os.getpid():  # unless closing was interrupted
        return owner.born == _born(owner.pid) and time.time() - owner.beat < PATIENCE
    try:
        return _born(owner.pid) == owner.born
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    except OverflowError:  # no process has such a number
        return False


def _lives(owner: Owner, path: Path, files: Files) -> bool:
    if owner.system == _system():
        return _is_running(owner)
    if abs(time.time() - owner.beat) > LONG_AGO:
        return False
    _log.warning("%s is held by %s: waiting up to %g s for a sign of life", path, owner, PATIENCE)
    return not _still(path, files, owner, PATIENCE)


def _still(path: Path, files: Files, owner: Owner | str, seconds: float) -> bool:
    """Whether the file stays as it is for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(0.2, seconds))
        if _read(path, files) != owner:
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
        f"checkpoints. Wait for it, end it (kill {owner.pid}), or choose another folder. Of "
        "several ranks, give fl.checkpoint to the first alone. If you know that it is gone, "
        f"delete {folder / LOCK}."
    )


def _read(path: Path, files: Files) -> Owner | str | None:
    """The owner; empty text if the file says none; None if there is no file."""
    try:
        if not files.renames:  # a store that may answer from what it has listed before
            files.sync(path.parent)
        with files.open(path) as stream:
            entry: Any = json.loads(stream.read(_LARGEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        return ""
    try:
        born = None if entry["born"] is None else int(entry["born"])
        token, host, system, since = (str(entry[n]) for n in ("token", "host", "system", "since"))
        return Owner(token, int(entry["pid"]), host, system, born, since, float(entry["beat"]))
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return ""


def _write(path: Path, files: Files, owner: Owner) -> None:
    """Make the file; on a disk it is an error that it exists. It need not survive a power loss."""
    output = files.create(path)
    try:
        try:
            write_all(output, json.dumps(owner._asdict()).encode())
        finally:
            output.close()
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(path)
        raise


def _drop(path: Path, files: Files, owner: Owner) -> None:
    """Remove the owner's lock; tries twice."""
    for _ in range(2):
        with contextlib.suppress(OSError):
            found = _read(path, files)
            if isinstance(found, Owner) and found.token == owner.token:
                files.remove(path)
            return


def _beat(path: Path, files: Files, owner: Owner, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(Exception):
            _renew(path, files, owner._replace(beat=time.time()))


def _renew(path: Path, files: Files, owner: Owner) -> None:
    found = _read(path, files)
    if not isinstance(found, Owner) or found.token != owner.token:
        return
    if not files.renames:
        _write(path, files, owner)
        return
    fresh = path.with_name(f"{path.name}.{owner.token}")
    with contextlib.suppress(FileNotFoundError):
        files.remove(fresh)
    _write(fresh, files, owner)
    files.rename(fresh, path)


def _release(
    path: Path,
    files: Files,
    owner: Owner,
    stop: threading.Event,
    thread: threading.Thread,
    descriptor: int | None,
) -> None:
    if os.getpid() != owner.pid:  # a fork, which has a copy
        return
    stop.set()
    if thread is not threading.current_thread():
        thread.join(PATIENCE)
    if descriptor is not None:
        os.close(descriptor)
    _drop(path, files, owner)


def _descriptor_of(folder: Path, files: Files) -> int | None:
    """By it the folder is known again after a rename; None where that is not possible."""
    if not files.renames or os.name == "nt":
        return None
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # it is not on this machine's disk
        return None
