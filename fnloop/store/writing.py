"""How a checkpoint is written: by one process, or by many ranks together."""

from __future__ import annotations

import contextlib
import errno
import uuid
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.store import tensor_file
from fnloop.store.checkpoint_errors import DamagedError
from fnloop.store.commit import commit, remove_tree, temporary_of
from fnloop.store.files import Files, reason_of, written
from fnloop.store.leaves import Leaf, Piece, Saved, by_file
from fnloop.store.manifest import TENSORS, put_manifest, read_manifest
from fnloop.values.parts import Part
from fnloop.values.regions import Region
from fnloop.values.signals import let_out, passing_over


class Writing:
    """Writes a checkpoint: all of it appears, or nothing does.

    Each rank writes a file of tensors, and reads it again. When all have, the first one writes the
    manifest, and renames the folder. What fails on one rank is raised on all.

    Args:
        target: The checkpoint.
        files: The file system.
        mesh: The ranks that write.
        begin: What the first rank does before anything is written.
    """

    def __init__(self, target: Path, files: Files, mesh: Mesh, begin: Callable[[], None]) -> None:
        self._target, self._files, self._mesh, self._begin = target, files, mesh, begin
        self._token = uuid.uuid4().hex[:8]
        self._folder = temporary_of(target) if files.renames else target

    def whole(self, leaves: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Write tensors that this process has whole, in format 1."""
        name = TENSORS if self._files.renames else f"state-{self._token}.safetensors"

        def described(every: list[dict[str, Leaf]]) -> dict[str, Any]:
            (own,) = every
            entries = {path: leaf.entry() for path, leaf in own.items()}
            size = tensor_file.bytes_of(own)
            return {**manifest, "file": name, "bytes": size, "leaves": entries}

        self._write(lambda: name, leaves, described)

    def pieces(
        self, tensors: Mapping[str, tuple[Tensor, Part | None]], manifest: Mapping[str, Any]
    ) -> None:
        """Write the pieces of all ranks, in format 2; what several have, the first of them writes.

        Args:
            tensors: By leaf path: what this rank has, and which part of the tensor that is; None
                for all of it.
            manifest: Its other entries; those of the first rank count.
        """
        first = self._mesh.rank == 0
        own = {
            path: leaf if part is None else part.logical(leaf)
            for path, (leaf, part) in tensors.items()
            if leaf.numel() and (part.first if part else first)
        }

        def described(every: list[dict[str, tuple[Region, str]]]) -> dict[str, Any]:
            saved: dict[str, Saved] = {}
            for path, (leaf, part) in tensors.items():
                kind = part or leaf
                there = [
                    Piece(self._name(rank), *found[path])
                    for rank, found in enumerate(every)
                    if path in found
                ]
                there.sort(key=_place)
                saved[path] = Saved(kind.dtype, tuple(kind.shape), tuple(there))
            sizes = {
                file: tensor_file.bytes_of({path: leaf for path, (_, leaf) in inside.items()})
                for file, inside in by_file(saved)
            }
            entries = {path: tensor.entry() for path, tensor in saved.items()}
            return {**manifest, "files": sizes, "leaves": entries}

        def told(found: dict[str, Leaf]) -> dict[str, tuple[Region, str]]:
            regions = {path: part.region for path, (_, part) in tensors.items() if part}
            return {
                path: (regions.get(path) or Region.all(leaf.shape), leaf.sha256)
                for path, leaf in found.items()
            }

        self._write(lambda: self._name(self._mesh.rank), own, described, told)

    def _name(self, rank: int) -> str:
        new = "" if self._files.renames else f"-{self._token}"
        return f"state{new}-{rank:05d}.safetensors"

    def _write(
        self,
        name: Callable[[], str],
        own: Mapping[str, Tensor],
        described: Callable[[list[Any]], dict[str, Any]],
        told: Callable[[dict[str, Leaf]], Any] = lambda found: found,
    ) -> None:
        """Write this rank's file, and as the first one the manifest.

        Args:
            name: The file's name, once all know what the checkpoint is called.
            own: Its tensors.
            described: The manifest, from what all ranks have `told`.
            told: What this rank tells of its file's leaves.
        """
        mesh, first, what = self._mesh, self._mesh.rank == 0, f"the save of {self._target}"
        committing = False
        try:
            jointly(mesh, what, self._start if first else _nothing)
            self._token, folder = mesh.exchange((self._token, self._folder.name))[0]
            self._folder = self._target.with_name(folder)
            found = jointly(mesh, what, lambda: self._put(self._folder / name(), own))
            every, committing = mesh.exchange(told(found)), True
            jointly(mesh, what, (lambda: self._finish(described(every))) if first else _nothing)
        except BaseException:
            if first and (self._files.renames or not committing):
                self._clean_up()
            raise

    def _start(self) -> None:
        self._begin()
        with unsaved(self._target, self._mesh):
            self._files.make(self._folder)

    def _put(self, file: Path, own: Mapping[str, Tensor]) -> dict[str, Leaf]:
        """Write a file of tensors; entries of what was read back from the disk."""
        if not own:
            return {}
        with unsaved(self._target, self._mesh):
            with written(self._files, file) as output:
                tensor_file.write(output, own)
            if not self._files.renames:  # it appears whole, or not at all
                return tensor_file.digests(own)
            return _read_again(file, own, self._files)

    def _finish(self, manifest: dict[str, Any]) -> None:
        files, folder = self._files, self._folder
        with unsaved(self._target, self._mesh):
            if not files.renames:
                new = {manifest["file"]} if "file" in manifest else set(manifest["files"])
                before = [n for n in files.names(folder) if n.endswith(".safetensors")]
                put_manifest(folder, manifest, files)
                with passing_over(OSError):  # readers ignore it; the next run tries again
                    for name in before:
                        if name not in new:
                            files.remove(folder / name)
                return
            put_manifest(folder, manifest, files)
            files.sync(folder)
            _compare_manifest(folder, files)
            commit(folder, self._target, files)

    def _clean_up(self) -> None:
        with passing_over(OSError):
            if self._files.renames:
                remove_tree(self._folder, self._files)
            elif self._mesh.data > 1:  # what others have uploaded
                for name in self._files.names(self._folder):
                    if name.startswith(f"state-{self._token}-"):
                        self._files.remove(self._folder / name)


@contextlib.contextmanager
def unsaved(target: Path, mesh: Mesh) -> Generator[None]:
    """Say in errors of the disk which checkpoint was not saved, and on which of many ranks."""
    try:
        yield
    except OSError as error:
        let_out(error)
        why = reason_of(error)
        if mesh.data > 1:
            why = f"rank {mesh.rank}: {why}"
            if error.errno == errno.ENOENT and mesh.rank:
                why += f"; rank 0 has made {target.parent}, which all ranks must be able to see"
        raise OSError(
            error.errno or errno.EIO,
            f"The checkpoint {target} was not saved ({why}); those saved before are untouched",
        ) from error


def _read_again(file: Path, leaves: Mapping[str, Tensor], files: Files) -> dict[str, Leaf]:
    """Entries for the manifest, with digests of the bytes read back from the disk."""
    with _as_disk_error():
        return tensor_file.check(files, file, leaves)


def _compare_manifest(folder: Path, files: Files) -> None:
    with _as_disk_error():
        read_manifest(folder, files=files)


@contextlib.contextmanager
def _as_disk_error() -> Generator[None]:
    try:
        yield
    except DamagedError as error:
        why = f"what was read again is not what was written: {error}"
        raise OSError(errno.EIO, why) from error


def _place(piece: Piece) -> tuple[list[int], int]:
    """Where a piece is in its tensor."""
    return [indices.start for indices in piece.region.box], piece.region.run.start


def _nothing() -> None:
    """What the other ranks do while the first one does something."""
