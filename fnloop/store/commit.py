"""Commit and delete checkpoints atomically.

A checkpoint is written under a hidden name and renamed when all of it is on the disk, so a folder
that is called ``step-...`` was complete. If it replaces one of the same name, that one is called
``.step-....old`` between the two renames, and readers use it if the other is missing: whenever the
process dies, one of the two is found.

Object stores cannot rename. There the manifest is written last and commits the checkpoint; it
names the file of tensors, which gets a new name each time.
"""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.files import Files, reason_of
from fnloop.store.folders import LEFTOVER, NAME, OLD, listing, old_of, target_of
from fnloop.store.leaves import files_in
from fnloop.store.manifest import MANIFEST, UNFINISHED, read_manifest
from fnloop.values.signals import let_out, passing_over


def prepare(folder: Path, files: Files) -> None:
    """Make `folder`, and check that it can be written.

    Raises:
        OSError: It cannot be written.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not files.exists(path)]
        for path in reversed(missing):
            files.make(path)
            files.sync(path.parent)
        if not listing(folder, files):
            # The process that made these folders may have died before it called fsync on them.
            for path in set(folder.parents) - {path.parent for path in missing}:
                with passing_over(OSError):  # there may be no permission to open them
                    files.sync(path)
        probe = folder / f".step-0.tmp-{uuid.uuid4().hex}"
        files.make(probe)
        files.remove_folder(probe)
    except OSError as error:
        let_out(error)
        raise OSError(
            error.errno or errno.EIO,
            f"No checkpoint can be written to {folder} ({reason_of(error)}). The usual cause is a "
            "read-only run folder, a file where a folder should be, or a store that does not "
            "answer; try again when it does, or pass a folder that you can write to",
        ) from error


def temporary_of(target: Path) -> Path:
    """A hidden name beside `target`, used once."""
    return target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")


def commit(temporary: Path, target: Path, files: Files) -> None:
    """Rename the finished folder `temporary` to `target`, or leave everything as it was."""
    old, replaces = old_of(target), files.exists(target)
    if replaces and files.exists(old):
        files.sync(target.parent)  # as in `sweep`
        remove_tree(old, files)
    came = False
    try:
        if replaces:
            files.rename(target, old)
        if files.exists(old):
            files.sync(target.parent)  # from here on the commit can be undone without loss
        files.rename(temporary, target)
        came = True
        files.sync(target.parent)
    except BaseException:
        with passing_over(OSError):
            _take_back(target, came, files)
        raise
    with passing_over(OSError):  # readers ignore it, and the next run tries again
        if files.exists(old):
            remove_tree(old, files)


def _take_back(target: Path, came: bool, files: Files) -> None:
    """Undo a failed commit; `came` says whether the new checkpoint has its name already."""
    aside = temporary_of(target)
    if came:
        files.rename(target, aside)
    if files.exists(old_of(target)):
        files.rename(old_of(target), target)
    if came:
        files.sync(target.parent)  # as in `sweep`; if it fails, `aside` is left to the next run
        remove_tree(aside, files)


def discard(target: Path, files: Files) -> None:
    """Delete a checkpoint atomically."""
    for path in (target, old_of(target)):
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
    """Clean up after killed processes: delete what is half-written or half-deleted."""
    if not files.renames:
        for path in listing(folder, files).values():
            _sweep_remote(path, files)
        return
    # They may have renamed without fsync. A power failure could then undo the rename, so fsync
    # before the replaced checkpoint is deleted.
    files.sync(folder)
    for name in files.names(folder):
        path = folder / name
        old = OLD.fullmatch(name)
        target = target_of(folder, int(old[1])) if old else None
        if target is not None and not files.exists(target):
            files.rename(path, target)  # its replacement was never committed
        elif target is not None or LEFTOVER.fullmatch(name):
            with passing_over(OSError):
                remove_tree(path, files)
        elif NAME.fullmatch(name) and files.exists(path / UNFINISHED):
            with passing_over(OSError):
                files.remove(path / UNFINISHED)


def _sweep_remote(path: Path, files: Files) -> None:
    """Delete the files of tensors that the manifest does not name."""
    with passing_over(OSError, CheckpointError):
        whole = files.exists(path / MANIFEST)
        named = files_in(read_manifest(path, files=files)) if whole else {}
        for name in files.names(path):
            if name != MANIFEST and name not in named:
                files.remove(path / name)
        if not whole:
            files.remove_folder(path)


def remove_tree(folder: Path, files: Files) -> None:
    """Delete a folder of files; for a symbolic link, only the link."""
    if files.renames and os.path.islink(folder):
        files.remove(folder)
        return
    for name in files.names(folder):
        files.remove(folder / name)
    files.remove_folder(folder)
