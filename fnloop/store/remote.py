"""File systems of fsspec, such as ``s3://``, as the store uses them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Generator, Mapping
from typing import Any

from fnloop.trees.show import printable

_WHOLE = 32 * 2**20  # bytes up to which a file is put in one piece

_ERRNOS = {
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    408: errno.ETIMEDOUT,
    410: errno.ENOENT,
    429: errno.EBUSY,
    503: errno.EBUSY,
    504: errno.ETIMEDOUT,
}
_KINDS = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (IsADirectoryError, errno.EISDIR),
    (NotADirectoryError, errno.ENOTDIR),
    (PermissionError, errno.EACCES),
    (TimeoutError, errno.ETIMEDOUT),
    (NotImplementedError, errno.ENOTSUP),
)


class Remote:
    """A file system of fsspec. A file appears when it is closed, complete.

    Other processes write there too, so what fsspec remembers of a folder is forgotten before it is
    looked at. Whatever the back-end raises is raised as ``OSError``.
    """

    renames = False

    def names(self, folder: Any) -> list[str]:
        with _translated(folder):
            fs, key = _fresh(folder)
            try:
                return [name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(key, detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def exists(self, path: Any) -> bool:
        with _translated(path):
            fs, key = _fresh(path)
            try:
                fs.info(key)  # fs.exists says False where the store does not answer
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def make(self, folder: Any) -> None:
        with _translated(folder):
            fs, key = _fresh(folder)
            fs.makedirs(key, exist_ok=True)

    def create(self, path: Any) -> _Upload:
        return _Upload(path)

    def open(self, path: Any) -> Any:
        with _translated(path):
            fs, key = _fresh(path)
            file = fs.open(key, "rb")
            details: Any = getattr(file, "details", None)  # that of a folder opens as an empty file
            if isinstance(details, Mapping) and details.get("type") == "directory":
                raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
            return _Download(path, file)

    def rename(self, old: Any, new: Any) -> None:
        raise OSError(errno.ENOTSUP, "object stores cannot rename", str(old))

    def remove(self, path: Any) -> None:
        with _translated(path):
            fs, key = _fresh(path)
            fs.rm_file(key)

    def remove_folder(self, path: Any) -> None:
        if self.exists(path):  # in most stores it vanishes with its last file
            with _translated(path):
                fs, key = _fresh(path)
                fs.rmdir(key)

    def sync(self, folder: Any) -> None:
        """Does nothing: a file is there when its upload has ended."""

    def free(self, folder: Any) -> int | None:
        return None


class _Upload:
    """A new file. What is small is put in one call, so that nothing can end it half-way."""

    def __init__(self, path: Any) -> None:
        self._path = path
        self._start = bytearray()
        self._stream: Any = None

    def write(self, data: Any, /) -> int:
        data = memoryview(data).cast("B")
        if self._stream is None and len(self._start) + len(data) <= _WHOLE:
            self._start += data
            return len(data)
        with _translated(self._path):
            if self._stream is None:
                fs, key = _fresh(self._path)
                self._stream = fs.open(key, "wb")
                self._stream.write(self._start)
                self._start.clear()
            written = self._sent(lambda: self._stream.write(data))
            return len(data) if written is None else written

    def sync(self) -> None:
        """Does nothing: the file appears when it is closed."""

    def close(self) -> None:
        with _translated(self._path):
            if self._stream is not None:
                self._sent(self._stream.close)
            else:
                fs, key = _fresh(self._path)
                fs.pipe_file(key, bytes(self._start))

    def _sent(self, call: Callable[[], Any]) -> Any:
        """Send a part; where the store has forgotten the upload, it may be begun anew."""
        try:
            return call()
        except FileNotFoundError as error:
            raise OSError(
                errno.EIO, f"the store does not know the upload any more ({error})", str(self._path)
            ) from error

    def abort(self) -> None:
        """Give the file up: to close it would publish what there is of it."""
        self._start.clear()
        stream, self._stream = self._stream, None
        if stream is None:
            return
        with contextlib.suppress(Exception):
            stream.discard()
        try:
            stream.closed = True  # else fsspec publishes it when it is collected
        except AttributeError:
            with contextlib.suppress(Exception):
                stream.close()
        with contextlib.suppress(Exception):
            fs, key = _fresh(self._path)
            fs.rm_file(key)


class _Download:
    def __init__(self, path: Any, file: Any) -> None:
        self._path, self._file = path, file

    def seek(self, offset: int, whence: int = 0) -> int:
        with _translated(self._path):
            return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        with _translated(self._path):
            return self._file.read(size)

    def readinto(self, memory: Any) -> int | None:
        with _translated(self._path):
            return self._file.readinto(memory)

    def close(self) -> None:
        with _translated(self._path):
            self._file.close()

    def __enter__(self) -> _Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fresh(path: Any) -> tuple[Any, str]:
    """The file system and the key of `path`; what is remembered of its folder is forgotten."""
    fs, key = path.fs, path.path
    fs.invalidate_cache(key)
    return fs, key


@contextlib.contextmanager
def _translated(path: Any) -> Generator[None]:
    """Raise the errors of a back-end, of which each has its own, as ``OSError`` with an errno."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.strerror:
            raise
        text = printable(" ".join(str(error).split()), 300) or "no reason given"
        raise OSError(_errno(error), f"{type(error).__name__}: {text}", str(path)) from error


def _errno(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    for kind, number in _KINDS:
        if isinstance(error, kind):
            return number
    return _ERRNOS.get(_status(error), errno.EIO)


def _status(error: Any) -> Any:
    """The status of HTTP in an error of botocore, requests, aiohttp, gcsfs or azure; else None."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder in (error, response):
        for name in ("status_code", "status", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return None
