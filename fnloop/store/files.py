"""The file system as the store uses it: a dozen calls, each of which may fail.

All access goes through one `Files` object, so that tests can replace it by one that fails at any
call, or that loses what was not synced.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Protocol


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
        # A symbolic link could lead out of the checkpoint; opening a pipe would block.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return io.FileIO(descriptor)

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


class Remote:
    """A file system of fsspec, such as ``s3://``. A file appears when it is closed, complete."""

    renames = False

    def names(self, folder: Path) -> list[str]:
        fs, key = _remote(folder)
        try:
            return [name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(key, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, path: Path) -> bool:
        fs, key = _remote(path)
        return fs.exists(key)

    def make(self, folder: Path) -> None:
        fs, key = _remote(folder)
        fs.makedirs(key, exist_ok=True)

    def create(self, path: Path) -> Output:
        fs, key = _remote(path)
        return _Upload(fs.open(key, "wb"))

    def open(self, path: Path) -> Any:
        fs, key = _remote(path)
        return fs.open(key, "rb")

    def rename(self, old: Path, new: Path) -> None:
        raise OSError(errno.ENOTSUP, "object stores cannot rename", str(old))

    def remove(self, path: Path) -> None:
        fs, key = _remote(path)
        fs.rm_file(key)

    def remove_folder(self, path: Path) -> None:
        fs, key = _remote(path)
        if fs.exists(key):  # in most stores it vanishes with its last file
            fs.rmdir(key)

    def sync(self, folder: Path) -> None:
        fs, key = _remote(folder)
        fs.invalidate_cache(key)

    def free(self, folder: Path) -> int | None:
        return None


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


class _NewFile(io.FileIO):
    def sync(self) -> None:
        os.fsync(self.fileno())


class _Upload:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any, /) -> int | None:
        return self._file.write(data)

    def sync(self) -> None:
        """Does nothing: the file appears when it is closed."""

    def close(self) -> None:
        self._file.close()


def _remote(path: Any) -> tuple[Any, str]:
    return path.fs, path.path
