"""Who holds a lock: what its file says, and whether that process lives."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.store.files import Files, write_all, written
from fnloop.values.signals import passing_over

PATIENCE = 60.0
"""Seconds without a sign of life after which an owner that cannot be asked is taken for dead."""
HELD: set[str] = set()
"""Tokens of the locks that this process holds, or is about to take."""
_LARGEST = 1 << 16


class Owner(NamedTuple):
    """Who holds a lock.

    Attributes:
        token: Of this lock alone.
        pid, host: The process.
        system: The running system in which `pid` means this process; see `system_now`.
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


def myself() -> Owner:
    """A new owner: this process."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    born = born_at(pid)
    return Owner(uuid.uuid4().hex, pid, socket.gethostname(), system_now(), born, now, time.time())


def system_now() -> str:
    """What tells whether process numbers mean the same: the boot, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def born_at(pid: int) -> int | None:
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


def is_running(owner: Owner) -> bool:
    """Whether an owner on this system lives."""
    if owner.pid == os.getpid():  # it may have been left when the store did not answer
        return owner.token in HELD
    try:
        return born_at(owner.pid) == owner.born
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    except OverflowError:  # no process has such a number
        return False


def read_owner(path: Path, files: Files) -> Owner | str | None:
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


def write_owner(path: Path, files: Files, owner: Owner) -> None:
    """Make the file; on a disk it is an error that it exists. It need not survive a power loss."""
    raw = json.dumps(owner._asdict()).encode()
    if not files.renames:  # it appears whole, or what was there before stays
        with written(files, path) as output:
            write_all(output, raw)
        return
    output = files.create(path)
    try:
        try:
            write_all(output, raw)
        finally:
            output.close()
    except BaseException:
        with passing_over(OSError):
            files.remove(path)
        raise
