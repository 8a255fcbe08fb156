"""The file system as the store sees it: a dozen calls, each of which may fail.

Everything that the store does to a disk goes through one `Files` object, so that a test can put
one in its place that fails at any call, or that forgets what was not synchronised.
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
        """Write a part of `data`, and say how many bytes of it."""
        ...

    def sync(self) -> None:
        """Wait until what was written has reached the disk."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    """What the store asks of a file system. Failures are ``OSError``.

    Attributes:
        renames: Whether a folder can be renamed in one step; object stores cannot do that.
    """

    renames: bool

    def names(self, folder: Path) -> list[str]:
        """What is in a folder; nothing if there is no such folder."""
        ...

    def exists(self, path: Path) -> bool: ...

    def make(self, folder: Path) -> None:
        """Make a folder whose parent is there."""
        ...

    def create(self, path: Path) -> Output:
        """Begin a new file."""
        ...

    def open(self, path: Path) -> io.RawIOBase:
        """Open a file to read; anything but a plain file is an error."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Let a file or folder take a name; a file that has it is replaced."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file."""
        ...

    def remove_folder(self, path: Path) -> None:
        """Delete a folder that is empty."""
        ...

    def sync(self, folder: Path) -> None:
        """Wait until the names in a folder have reached the disk."""
        ...

    def free(self, folder: Path) -> int | None:
        """Free bytes; None if that cannot be told."""
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
        # A symbolic link would lead out of the checkpoint; opening a pipe would wait for ever.
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
    """A store that fsspec knows, such as ``s3://``. A file appears whole, when it is closed."""

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
        if fs.exists(key):  # in most stores it went with its last file
            fs.rmdir(key)

    def sync(self, folder: Path) -> None:
        fs, key = _remote(folder)
        fs.invalidate_cache(key)

    def free(self, folder: Path) -> int | None:
        return None


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path, or for a URL such as ``s3://bucket/runs`` what stands for one.

    Raises:
        ImportError: For a URL, where universal-pathlib is missing.
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
    """What reads and writes there."""
    return Remote() if hasattr(path, "fs") else Disk()


def write_all(output: Any, data: Any) -> None:
    """Write all of `data`: a file may take less of it at a time."""
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
        """Nothing is there before the file is closed."""

    def close(self) -> None:
        self._file.close()


def _remote(path: Any) -> tuple[Any, str]:
    return path.fs, path.path
