"""Files of runs: their names, and how they grow; an earlier run's file is never overwritten."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from pathlib import Path
from typing import Any


def local(path: str | os.PathLike[str], tracker: str) -> Path:
    """The path of a tracker's file or folder.

    Raises:
        ValueError: It is a URL, or a ``UPath``.
    """
    if hasattr(path, "fs") or (isinstance(path, str) and "://" in path):
        raise ValueError(
            f"{tracker} writes to a disk, and {path} is a URL. Object stores cannot append to a "
            "file: give it a local path, and copy what is there when the run has ended. "
            "Checkpoints do go to a URL."
        )
    return Path(path)


def claim(path: Path) -> Path:
    """Create `path`, or ``<stem>-2<suffix>``, ``-3``, ... if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            candidate.touch(exist_ok=False)
        except FileExistsError:
            continue
        if number > 1:
            warnings.warn(
                f"{path} holds an earlier run; this run is written to {candidate.name}.",
                stacklevel=2,
            )
        return candidate
    raise AssertionError("unreachable")


def replace(path: Path, data: bytes) -> None:
    """Replace a file's content by an atomic rename: by all of `data` or, if that fails, nothing."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        scratch.unlink(missing_ok=True)
        append(scratch, data)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def is_same(path: Path, before: Path | None) -> bool:
    """Whether the file or folder `path` is the one that a resumed run wrote to `before`.

    If that is in another place and still there, `path` is another run's. If it is gone, it was
    moved here.
    """
    return path.exists() and (before is None or before == path or not before.exists())


def is_name(run: Any) -> bool:
    """Whether a run's id is a file name, and no path to another folder.

    >>> is_name("a-2.jsonl"), is_name("../a"), is_name(5)
    (True, False, False)
    """
    if not isinstance(run, str) or run in ("", ".", "..") or len(run) > 200:
        return False
    return run.isprintable() and not set(run) & set("/\\:")


def append(path: Path, data: bytes, beginning: bytes = b"") -> None:
    """Append `data`: all of it or, if that fails, nothing.

    Args:
        path: The file; created if missing, for somebody may have deleted it. Its folder is not:
            it may have been renamed, and the run's files would then lie in two places.
        data: What to write.
        beginning: What an empty file begins with.

    Raises:
        OSError: It cannot be written.
    """
    try:
        file = path.open("ab", buffering=0)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            f"the folder {path.parent} was deleted or renamed; put it back, and what is waiting is "
            "written there",
        ) from error
    with file:
        end = file.seek(0, 2)
        rest = memoryview(data if end else beginning + data)
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def end_last_line(path: Path) -> None:
    """Remove an incomplete last line, left by a killed process."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
