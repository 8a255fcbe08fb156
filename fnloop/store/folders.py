"""Folders of checkpoints: names, what is complete, and how one takes its place.

A checkpoint is written under a hidden name and renamed when all of it is on the disk, so a folder
that is called ``step-...`` was once complete. Where it replaces one of the same name, that one is
called ``.step-....old`` for the moment between two renames, and readers take it for the one that
is missing: whenever the process dies, one of both is found.

Object stores cannot rename. There a checkpoint is its manifest, which is put last; the file of
tensors that it names has a name of its own each time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
import warnings
from pathlib import Path
from typing import Any

from fnloop.store.errors import CheckpointError, DamagedError
from fnloop.store.files import Files, as_path, files_for
from fnloop.store.manifest import MANIFEST, UNFINISHED, read_manifest
from fnloop.store.read import leaves_in

_STEP = "step-([0-9]{8}|[1-9][0-9]{8,18})"
_NAME = re.compile(_STEP)
_OLD = re.compile(rf"\.{_STEP}\.old")
_LEFTOVER = re.compile(r"\.step-[0-9]+\.tmp-[0-9a-f]+")


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
        if match := _NAME.fullmatch(name):
            found[int(match[1])] = folder / name
        elif match := _OLD.fullmatch(name):
            old[int(match[1])] = folder / name
    return {**old, **found}


def is_checkpoint(path: Path, files: Files) -> bool:
    """Whether `path` is, by what is in it or by its name, one checkpoint and no folder of them."""
    return files.exists(path / MANIFEST) or _NAME.fullmatch(path.name) is not None


def stand_in(path: Path, files: Files) -> Path:
    """A checkpoint, or what it is called between two renames."""
    return _old(path) if not files.exists(path) and files.exists(_old(path)) else path


def prepare(folder: Path, files: Files) -> None:
    """Make `folder`, and find out whether it can be written.

    Raises:
        OSError: It cannot.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not files.exists(path)]
        for path in reversed(missing):
            files.make(path)
            files.sync(path.parent)
        if not listing(folder, files):
            # Whoever made these folders, or died in doing so, may not have synchronised them.
            for path in set(folder.parents) - {path.parent for path in missing}:
                with contextlib.suppress(OSError):  # not everybody may open them
                    files.sync(path)
        probe = folder / f".step-0.tmp-{uuid.uuid4().hex}"
        files.make(probe)
        files.remove_folder(probe)
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


def commit(temporary: Path, target: Path, files: Files) -> None:
    """Let the finished folder `temporary` take the place `target`, or leave all as it was."""
    old, replaces = _old(target), files.exists(target)
    if replaces and files.exists(old):
        files.sync(target.parent)  # as in `sweep`
        remove_tree(old, files)
    came = False
    try:
        if replaces:
            files.rename(target, old)
        if files.exists(old):
            files.sync(target.parent)  # only then can all be taken back and nothing be lost
        files.rename(temporary, target)
        came = True
        files.sync(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            _take_back(target, came, files)
        raise
    with contextlib.suppress(OSError):  # it is passed over, and the next run tries again
        if files.exists(old):
            remove_tree(old, files)


def _take_back(target: Path, came: bool, files: Files) -> None:
    """Undo a commit that failed, before or after the new one `came`."""
    aside = temporary_of(target)
    if came:
        files.rename(target, aside)
    if files.exists(_old(target)):
        files.rename(_old(target), target)
    if came:
        files.sync(target.parent)  # as in `sweep`; if it fails, this is left for the next one
        remove_tree(aside, files)


def discard(target: Path, files: Files) -> None:
    """Delete a checkpoint; it is gone at once or not at all."""
    for path in (target, _old(target)):
        if not files.exists(path):
            continue
        if files.renames:
            hidden = temporary_of(target)
            files.rename(path, hidden)
            path = hidden
        elif files.exists(path / MANIFEST):
            files.remove(path / MANIFEST)
        remove_tree(path, files)


def sweep(folder: Path, files: Files) -> None:
    """Tidy up after processes that died: delete what is half-written or half-deleted."""
    if not files.renames:
        for path in listing(folder, files).values():
            _sweep_remote(path, files)
        return
    # They may have renamed, and not synchronised: what is there now could vanish with the power,
    # and what it replaces is only to be deleted when it cannot.
    files.sync(folder)
    for name in files.names(folder):
        path = folder / name
        old = _OLD.fullmatch(name)
        target = target_of(folder, int(old[1])) if old else None
        if target is not None and not files.exists(target):
            files.rename(path, target)  # it stood in for one that never came
        elif target is not None or _LEFTOVER.fullmatch(name):
            with contextlib.suppress(OSError):
                remove_tree(path, files)
        elif _NAME.fullmatch(name) and files.exists(path / UNFINISHED):
            with contextlib.suppress(OSError):
                files.remove(path / UNFINISHED)


def _sweep_remote(path: Path, files: Files) -> None:
    """Delete the files of tensors that no manifest names."""
    with contextlib.suppress(OSError, CheckpointError):
        whole = files.exists(path / MANIFEST)
        named = read_manifest(path, files=files)["file"] if whole else None
        for name in files.names(path):
            if name not in (MANIFEST, named):
                files.remove(path / name)
        if not whole:
            files.remove_folder(path)


def remove_tree(folder: Path, files: Files) -> None:
    """Delete a folder of files; of a symbolic link, the link alone."""
    if files.renames and os.path.islink(folder):
        files.remove(folder)
        return
    for name in files.names(folder):
        files.remove(folder / name)
    files.remove_folder(folder)


def _old(target: Path) -> Path:
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
    if there and _NAME.fullmatch(path.name):
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
