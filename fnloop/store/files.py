"""The file system as the store uses it: a dozen calls, each of which may fail.

All access goes through one `Files` object, so that tests can replace it by one that fails at any
call, or that loses what was not synced.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

from fnloop.store.remote import Remote
from fnloop.values.signals import passing_over


class Output(Protocol):
    """A new file."""

    def write(self, data: Any, /) -> int | None:
        """Write some or all of `data`; return how many bytes."""
        ...

    def sync(self) -> None:
        """fsync: wait until the written bytes are on the disk."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    """The file system calls that the store needs. Failures are ``OSError``.

    Attributes:
        renames: Whether a folder can be renamed atomically; object stores cannot do that.
    """

    renames: bool

    def names(self, folder: Path) -> list[str]:
        """Names in a folder; empty if there is no such folder."""
        ...

    def exists(self, path: Path) -> bool: ...

    def make(self, folder: Path) -> None:
        """Make a folder; its parent exists."""
        ...

    def create(self, path: Path) -> Output:
        """Create a new file."""
        ...

    def open(self, path: Path) -> io.RawIOBase:
        """Open a file to read; anything but a plain file is an error."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder; replaces an existing file."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file."""
        ...

    def remove_folder(self, path: Path) -> None:
        """Delete an empty folder."""
        ...

    def sync(self, folder: Path) -> None:
        """fsync a folder: wait until its entries are on the disk."""
        ...

    def free(self, folder: Path) -> int | None:
        """Free bytes; None if unknown."""
        ...


class NotPlainFile(OSError):
    """A pipe, a socket, a device or a folder, where a file was to be read."""


class Disk:
    """The local file system."""

    renames = True

    def names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, path: Path) -> bool:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make(self, folder: Path) -> None:
        os.mkdir(folder)

    def create(self, path: Path) -> Output:
        return _NewFile(path, "xb")

    def open(self, path: Path) -> io.RawIOBase:
        # A symbolic link could lead out of the checkpoint.
        return open_plain(path, getattr(os, "O_NOFOLLOW", 0))

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        os.rmdir(path)

    def sync(self, folder: Path) -> None:
        if os.name == "nt":  # Windows cannot open folders
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free(self, folder: Path) -> int | None:
        return shutil.disk_usage(folder).free


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path; for a URL such as ``s3://bucket/runs``, a ``UPath``.

    Raises:
        ImportError: For a URL, if universal-pathlib is missing.
    """
    if not (isinstance(path, str) and "://" in path):
        return path if hasattr(path, "fs") else Path(path)  # pyright: ignore
    try:
        from upath import UPath
    except ImportError as error:
        raise ImportError(
            f"The store {path} is remote, which needs universal-pathlib: pip install "
            "'fnloop[remote]', and the fsspec package of that store, such as s3fs."
        ) from error
    remote: Any = UPath(path)
    return remote


def files_for(path: Path) -> Files:
    """The file system of `path`."""
    return Remote() if hasattr(path, "fs") else Disk()


def write_all(output: Any, data: Any) -> None:
    """Write all of `data`: one call of ``write`` may write less."""
    rest = memoryview(data).cast("B")
    while rest:
        written = output.write(rest)
        rest = rest[len(rest) if written is None else written :]


def open_plain(path: Path, flags: int = 0) -> io.FileIO:
    """Open a file to read, without waiting for anything.

    Raises:
        NotPlainFile: It is a pipe, a socket, a device or a folder.
    """
    flags |= os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlainFile(errno.EINVAL, "it is no plain file", str(path))
    return io.FileIO(descriptor)


@contextlib.contextmanager
def written(files: Files, file: Path) -> Generator[Output]:
    """A new file: on the disk when the block ends, given up if it fails."""
    output = files.create(file)
    try:
        yield output
        output.sync()
        output.close()
    except BaseException:
        with passing_over(OSError):
            # To close an upload would publish it, so there it is aborted.
            getattr(output, "abort", output.close)()
        raise


def reason_of(error: BaseException) -> str:
    """Why, as text for a message."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


class _NewFile(io.FileIO):
    def sync(self) -> None:
        os.fsync(self.fileno())
