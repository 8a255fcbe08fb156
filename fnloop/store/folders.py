"""Folders of checkpoints: what they are called, and which are there."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

from fnloop.store.checkpoint_errors import CheckpointError, DamagedError
from fnloop.store.files import Files, as_path, files_for
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.store.read import leaves_in

_STEP = "step-([0-9]{8}|[1-9][0-9]{8,18})"
NAME = re.compile(_STEP)
OLD = re.compile(rf"\.{_STEP}\.old")
LEFTOVER = re.compile(r"\.step-[0-9]+\.tmp-[0-9a-f]+")


def latest(folder: str | os.PathLike[str], *, files: Files | None = None) -> Path | None:
    """The checkpoint with the highest count of batches, or None if there is none.

    One that is not complete is passed over, with a warning. Only its manifest and sizes are looked
    at; `fl.load` of the folder itself verifies every byte, and goes back further if it must.

    Args:
        folder: Where `fl.save` or `fl.checkpoint` put them.
        files: What reads; default the disk, or fsspec for a URL.
    """
    for _, path in sorted(listing(folder, files).items(), reverse=True):
        if _manifest_if_complete(path, files) is not None:
            return path
    return None


def best(folder: str | os.PathLike[str], *, files: Files | None = None) -> Path | None:
    """The checkpoint whose monitored metric is best, or None if none was monitored.

    Of equals the earliest; nan is worst. If checkpoints monitored different metrics, the newest
    one decides which counts.

    Args:
        folder: Where `fl.checkpoint(folder, monitor=...)` put them.
        files: What reads; default the disk, or fsspec for a URL.
    """
    scores: list[tuple[float, int, Path]] = []
    kind: tuple[str, str] | None = None
    for count, path in sorted(listing(folder, files).items(), reverse=True):
        manifest = _manifest_if_complete(path, files)
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


def listing(folder: str | os.PathLike[str], files: Files | None = None) -> dict[int, Path]:
    """Checkpoints by count, complete or not."""
    folder = as_path(folder)
    found: dict[int, Path] = {}
    old: dict[int, Path] = {}
    for name in (files or files_for(folder)).names(folder):
        if match := NAME.fullmatch(name):
            found[int(match[1])] = folder / name
        elif match := OLD.fullmatch(name):
            old[int(match[1])] = folder / name
    return {**old, **found}


def is_checkpoint(path: Path, files: Files) -> bool:
    """Whether `path` is, by what is in it or by its name, one checkpoint and no folder of them."""
    return files.exists(path / MANIFEST) or NAME.fullmatch(path.name) is not None


def stand_in(path: Path, files: Files) -> Path:
    """A checkpoint, or what it is called between two renames."""
    return old_of(path) if not files.exists(path) and files.exists(old_of(path)) else path


def target_of(folder: Path, count: int) -> Path:
    """The place of the checkpoint with this count."""
    return folder / f"step-{count:08d}"


def old_of(target: Path) -> Path:
    """What a checkpoint is called while another takes its place."""
    return target.with_name(f".{target.name}.old")


def _manifest_if_complete(path: Path, files: Files | None) -> dict[str, Any] | None:
    files = files or files_for(path)
    try:
        manifest = read_manifest(path, files=files)
        leaves_in(manifest, path)
        with files.open(path / manifest["file"]) as stream:
            size = stream.seek(0, os.SEEK_END)
        if size == manifest["bytes"]:
            return manifest
        problem = f"{manifest['file']} has {size} bytes instead of {manifest['bytes']}"
    except (CheckpointError, OSError) as error:
        problem = str(error)
    warnings.warn(f"The checkpoint {path} was passed over: {problem}", stacklevel=3)
    return None


def nothing_in(path: Path, files: Files) -> DamagedError:
    """The error for a path at which there is no checkpoint."""
    there, entries = files.exists(path), files.names(path)
    if there and NAME.fullmatch(path.name):
        why = f"it has no {MANIFEST}" if entries else "it is empty"
        return DamagedError(f"{path} is not a complete checkpoint: {why}.")
    if there and (entries or is_folder(path, files)):
        return DamagedError(f"The folder {path} holds no complete checkpoint (step-...).")
    what = "is a file" if there else "does not exist"
    return DamagedError(f"{path} {what}; expected a checkpoint, or a folder of checkpoints.")


def is_folder(path: Path, files: Files) -> bool:
    """Whether what is there is no file."""
    try:
        files.open(path).close()
    except OSError:
        return True
    return False
