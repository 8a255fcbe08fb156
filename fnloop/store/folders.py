"""Folders of checkpoints: names, what is complete, and how one takes its place.

A checkpoint is written under a hidden name and renamed when all of it is on the disk, so a folder
that is called ``step-...`` was once complete. Where it replaces one of the same name, that one is
called ``.step-....old`` for the moment between two renames, and readers take it for the one that
is missing: whenever the process dies, one of both is found.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

from fnloop.store.manifest import MANIFEST, TENSORS, CheckpointError, read_manifest, sync_folder

_NAME = re.compile(r"step-(\d+)")
_OLD = re.compile(r"\.step-(\d+)\.old")
_LEFTOVER = re.compile(r"\.step-\d+\.tmp-[0-9a-f]+")


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the highest count of batches, or None if there is none.

    One that is not complete is passed over, with a warning.

    Args:
        folder: Where `fl.save` or `fl.checkpoint` put them.
    """
    for _, path in sorted(listing(Path(folder)).items(), reverse=True):
        if _manifest_if_complete(path) is not None:
            return path
    return None


def best(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint whose monitored metric is best, or None if none was monitored.

    Of equals the earliest; nan is worst. If checkpoints monitored different metrics, the newest
    one decides which counts.

    Args:
        folder: Where `fl.checkpoint(folder, monitor=...)` put them.
    """
    scores: list[tuple[float, int, Path]] = []
    kind: tuple[str, str] | None = None
    for count, path in sorted(listing(Path(folder)).items(), reverse=True):
        manifest = _manifest_if_complete(path)
        monitor = manifest["monitor"] if manifest else None
        if monitor is None:
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


def listing(folder: Path) -> dict[int, Path]:
    """Checkpoints by count, complete or not."""
    found: dict[int, Path] = {}
    old: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
        elif match := _OLD.fullmatch(path.name):
            old[int(match[1])] = path
    return {**old, **found}


def locate(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that `path` means: itself, or the latest in it.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return path
    if _NAME.fullmatch(path.name):
        if not path.exists() and _old(path).exists():
            return _old(path)
        if path.is_dir():
            raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MANIFEST}.")
    found = latest(path)
    if found is not None:
        return found
    if path.is_dir():
        raise CheckpointError(f"The folder {path} holds no complete checkpoint (step-...).")
    what = "is a file" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {what}; expected a checkpoint, or a folder of checkpoints.")


def prepare(folder: Path) -> None:
    """Make `folder`, and find out whether it can be written.

    Raises:
        OSError: It cannot.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)
        probe = folder / f".step-0.tmp-{uuid.uuid4().hex}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"No checkpoint can be written to {folder} ({error.strerror}). The usual cause is a "
            "read-only run folder, or a file where a folder should be; pass a folder that you can "
            "write to",
        ) from error


def target_of(folder: Path, count: int) -> Path:
    """The place of the checkpoint with this count."""
    return folder / f"step-{count:08d}"


def temporary_of(target: Path) -> Path:
    """A hidden name beside `target`, used once."""
    return target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")


def commit(temporary: Path, target: Path) -> None:
    """Let the finished folder `temporary` take the place `target`."""
    old = _old(target)
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        os.rename(target, old)
    os.rename(temporary, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(target: Path) -> None:
    """Delete a checkpoint; it is gone at once or not at all."""
    for path in (target, _old(target)):
        if path.exists():
            hidden = temporary_of(target)
            os.rename(path, hidden)
            shutil.rmtree(hidden)


def sweep(folder: Path) -> None:
    """Tidy up after processes that died: delete what is half-written or half-deleted."""
    for path in list(folder.iterdir()):
        old = _OLD.fullmatch(path.name)
        target = target_of(folder, int(old[1])) if old else None
        if target is not None and not target.exists():
            os.rename(path, target)  # it stood in for one that never came
        elif target is not None or _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _manifest_if_complete(path: Path) -> dict[str, Any] | None:
    try:
        manifest = read_manifest(path)
        size = (path / TENSORS).stat().st_size
        if size == manifest["bytes"]:
            return manifest
        problem = f"{TENSORS} has {size} bytes instead of {manifest['bytes']}"
    except (CheckpointError, OSError) as error:
        problem = str(error)
    warnings.warn(f"The checkpoint {path} was passed over: {problem}", stacklevel=3)
    return None
