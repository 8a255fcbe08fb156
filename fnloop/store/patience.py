"""Failures that may pass, told apart from damage, and tried again."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from fnloop.store.checkpoint_errors import CheckpointError, DamagedError, UnreadableError
from fnloop.store.files import Files, NotPlainFile, reason_of
from fnloop.values.signals import let_out, passing_over

T = TypeVar("T")

_log = logging.getLogger("fnloop")

DELAYS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds from one attempt to the next."""

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_LASTING = _NOT_THERE | {
    getattr(errno, name)
    for name in (
        "EACCES",
        "EDQUOT",
        "EEXIST",
        "EFBIG",
        "EINVAL",
        "ENAMETOOLONG",
        "ENOSPC",
        "ENOTEMPTY",
        "ENOTSUP",
        "EPERM",
        "EROFS",
    )
    if hasattr(errno, name)
}


def read_may_pass(error: OSError) -> bool:
    """Whether reading may work later: the file is there, as far as the error says."""
    if isinstance(error, (CheckpointError, NotPlainFile, FileExistsError)):
        return False
    return error.errno not in _NOT_THERE


def write_may_pass(error: OSError) -> bool:
    """Whether writing may work in a moment; a disk that is full or read-only takes longer."""
    if isinstance(error, (CheckpointError, FileExistsError)):
        return False
    return error.errno not in _LASTING


def patiently(call: Callable[[], T], may_pass: Callable[[OSError], bool] = read_may_pass) -> T:
    """Call it, and again after each of `DELAYS` if it fails for a reason that may pass."""
    for number, delay in enumerate(DELAYS):
        try:
            return call()
        except OSError as error:
            let_out(error)
            if not may_pass(error):
                raise
            if not number:
                _log.warning("%s; trying again for %.0f s", error, sum(DELAYS))
        time.sleep(delay)
    return call()


def read_error(file: Path, error: OSError | EOFError) -> CheckpointError:
    """The error for a file that could not be read: damage, or something that may pass."""
    let_out(error)
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, EOFError) or not read_may_pass(error):
        return DamagedError(f"{file} cannot be read: {reason_of(error)}.")
    return UnreadableError(
        error.errno or errno.EIO,
        f"{file} cannot be read now: {reason_of(error)}. That is not damage, so no older "
        "checkpoint is taken in its place. The usual causes are too many open files (ulimit -n), a "
        "missing permission, or a disk or store on the network that does not answer. Mend that and "
        "try again; to use an older checkpoint, give its own path.",
    )


@contextlib.contextmanager
def opened(files: Files, file: Path) -> Generator[Reader]:
    """A file to be read patiently.

    Raises:
        DamagedError: It is not there, is no plain file, or ends too early.
        UnreadableError: It could not be read, though it was tried again.
    """
    reader = Reader(files, file)
    try:
        with reader:
            yield reader
    except (OSError, EOFError) as error:
        raise read_error(file, error) from error


class Reader:
    """A file that is opened again, at the same position, if a read fails for a moment."""

    def __init__(self, files: Files, file: Path) -> None:
        self._files, self._file = files, file
        self._stream: Any = None
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position, and return it, counted from the beginning."""
        self._position = self._do(lambda stream: stream.seek(offset, whence))
        return self._position

    def readinto(self, memory: memoryview) -> int:
        """Read some bytes into `memory`; return how many, 0 at the end."""
        got = self._do(lambda stream: stream.readinto(memory)) or 0
        self._position += got
        return got

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _do(self, call: Callable[[Any], Any]) -> Any:
        def attempt() -> Any:
            if self._stream is None:
                self._stream = self._files.open(self._file)
                self._stream.seek(self._position)
            try:
                return call(self._stream)
            except BaseException:
                self._close()
                raise

        return patiently(attempt)

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with passing_over(OSError):  # what was read is verified by its digest
                stream.close()
