"""Folders of checkpoints: their names, and how to find them."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import warnings
from pathlib import Path
from typing import Any

from fnloop.names.keywords import explained
from fnloop.store.checkpoint_errors import (
    CheckpointError,
    DamagedError,
    MissingError,
    UnfinishedError,
    UnreadableError,
)
from fnloop.store.files import Files, NotPlainFile, as_path, files_for
from fnloop.store.leaves import files_in
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.store.patience import opened, patiently, read_error, read_may_pass
from fnloop.store.read import leaves_in

_STEP = "step-([0-9]{8}|[1-9][0-9]{8,18})"
NAME = re.compile(_STEP)
OLD = re.compile(rf"\.{_STEP}\.old")
LEFTOVER = re.compile(r"\.step-[0-9]+\.tmp-[0-9a-f]+")


@explained
def latest(
    folder: str | os.PathLike[str], *, run: str | None = None, files: Files | None = None
) -> Path | None:
    """The checkpoint with the highest count of batches, or None if there is none.

    Incomplete ones are skipped, with a warning. Only manifests and sizes are checked; `fl.load` of
    the folder itself verifies every byte, and skips damaged ones.

    Args:
        folder: The folder given to `fl.save` or `fl.checkpoint`.
        run: Only those of the run with this identity; default all.
        files: The file system; default the disk, or fsspec for a URL.

    Raises:
        OSError: Something there cannot be read now, though it was tried again for some seconds.
    """
    for _, path in sorted(listing(folder, files).items(), reverse=True):
        manifest = _manifest_if_complete(path, files)
        if manifest is not None and run in (None, manifest.get("run")):
            return path
    return None


@explained
def best(
    folder: str | os.PathLike[str], *, run: str | None = None, files: Files | None = None
) -> Path | None:
    """The checkpoint whose monitored metric is best, or None if none was monitored.

    Of equal ones the earliest; nan is worst. If checkpoints monitored different metrics, that of
    the newest one counts.

    Args:
        folder: The folder given to `fl.checkpoint(folder, monitor=...)`.
        run: Only those of the run with this identity; default all.
        files: The file system; default the disk, or fsspec for a URL.

    Raises:
        OSError: As for `latest`.
    """
    scores: list[tuple[float, int, Path]] = []
    kind: tuple[str, str] | None = None
    for count, path in sorted(listing(folder, files).items(), reverse=True):
        manifest = _manifest_if_complete(path, files)
        monitor = manifest["monitor"] if manifest else None
        if manifest is None or monitor is None or run not in (None, manifest.get("run")):
            continue
        kind = kind or (monitor["name"], monitor["mode"])
        if kind == (monitor["name"], monitor["mode"]):
            scores.append((badness(monitor["value"], monitor["mode"]), count, path))
    return min(scores)[2] if scores else None


def badness(value: float, mode: str) -> float:
    """A number that is smaller for a better value; nan is worst."""
    if value != value:
        return float("inf")
    return value if mode == "min" else -value


def listing(folder: str | os.PathLike[str], files: Files | None = None) -> dict[int, Path]:
    """Checkpoints by count, complete or not."""
    folder = as_path(folder)
    found: dict[int, Path] = {}
    old: dict[int, Path] = {}
    store = files or files_for(folder)
    try:
        names = patiently(lambda: store.names(folder))
    except OSError as error:
        raise read_error(folder, error) from error
    for name in names:
        if match := NAME.fullmatch(name):
            found[int(match[1])] = folder / name
        elif match := OLD.fullmatch(name):
            old[int(match[1])] = folder / name
    return {**old, **found}


def is_checkpoint(path: Path, files: Files) -> bool:
    """Whether `path`, by its contents or its name, is one checkpoint, not a folder of them."""
    return is_there(path / MANIFEST, files) or NAME.fullmatch(path.name) is not None


def stand_in(path: Path, files: Files) -> Path:
    """`path`; or the checkpoint that it was replacing, if a commit was interrupted."""
    return old_of(path) if not is_there(path, files) and is_there(old_of(path), files) else path


def is_there(path: Path, files: Files) -> bool:
    """Whether there is a file or a folder; asked again if no answer comes."""
    try:
        return patiently(lambda: files.exists(path))
    except OSError as error:
        raise read_error(path, error) from error


def target_of(folder: Path, count: int) -> Path:
    """The path of the checkpoint with this count."""
    return folder / f"step-{count:08d}"


def old_of(target: Path) -> Path:
    """The name of a checkpoint while it is being replaced."""
    return target.with_name(f".{target.name}.old")


def _manifest_if_complete(path: Path, files: Files | None) -> dict[str, Any] | None:
    files = files or files_for(path)
    try:
        manifest = read_manifest(path, files=files)
        leaves_in(manifest, path)
        problem = None
        for file, expected in files_in(manifest).items():
            with opened(files, path / file) as stream:
                size = stream.seek(0, os.SEEK_END)
            if size != expected:
                problem = problem or f"{file} has {size} bytes instead of {expected}"
        if problem is None:
            return manifest
    except UnreadableError:
        raise
    except UnfinishedError:
        return None
    except CheckpointError as error:
        problem = str(error)
    warnings.warn(f"The checkpoint {path} was passed over: {problem}", stacklevel=3)
    return None


def nothing_in(path: Path, files: Files) -> CheckpointError:
    """The error for a path at which there is no checkpoint."""
    there = is_there(path, files)
    entries = patiently(lambda: files.names(path))
    if there and NAME.fullmatch(path.name):
        why = f"it has no {MANIFEST}" if entries else "it is empty"
        return DamagedError(f"{path} is not a complete checkpoint: {why}.")
    if there and (entries or is_folder(path, files)):
        return MissingError(
            f"The folder {path} holds no complete checkpoint (step-...).{meant(path, files)}"
        )
    if there:
        return MissingError(f"{path} is a file; expected a checkpoint, or a folder of checkpoints.")
    where = "" if path.is_absolute() or "://" in str(path) else f" in {os.getcwd()}"
    return MissingError(f"There is no folder {path}{where}.{meant(path, files)}")


def meant(path: Path, files: Files) -> str:
    """For a path without a checkpoint, a sentence that names one of a similar name, or inside."""
    with contextlib.suppress(OSError, CheckpointError):  # what cannot be listed names nothing
        inside = [path / name for name in files.names(path)]
        if runs := [folder for folder in sorted(inside) if listing(folder, files)]:
            return f" Did you mean {runs[0]}?"
        names = [] if files.exists(path) else files.names(path.parent)
        if close := difflib.get_close_matches(path.name, names, n=1):
            return f" Did you mean {path.with_name(close[0])}?"
    return ""


def is_folder(path: Path, files: Files) -> bool:
    """Whether `path`, which is there, is no file."""
    try:
        patiently(lambda: files.open(path)).close()
    except NotPlainFile:
        return True
    except OSError as error:
        if read_may_pass(error):
            raise read_error(path, error) from error
        return True
    return False
