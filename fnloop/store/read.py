"""The tensors of a checkpoint by its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fnloop.store import tensor_file
from fnloop.store.checkpoint_errors import DamagedError
from fnloop.store.files import Files
from fnloop.store.leaves import Saved, by_file, files_in, saved_from
from fnloop.store.manifest import MANIFEST
from fnloop.store.schema import LONE
from fnloop.values.regions import Region, common, copy


def leaves_in(manifest: Mapping[str, Any], folder: Path) -> dict[str, Saved]:
    """A manifest's entries for leaves, by path.

    Raises:
        DamagedError: They are incomplete, or contradict the sizes of the files.
    """
    leaves, sizes = saved_from(manifest), files_in(manifest)
    if lacking := [path for path in LONE if path not in leaves]:
        raise DamagedError(f"{folder / MANIFEST} lacks the leaf {lacking[0]!r}, which all have.")
    found = {
        file: tensor_file.bytes_of({path: leaf for path, (_, leaf) in inside.items()})
        for file, inside in by_file(leaves)
    }
    for file in {**sizes, **found}:
        if sizes.get(file) != found.get(file):
            raise DamagedError(
                f"{folder / MANIFEST} says that {file} has {sizes.get(file, 0)} bytes, and by its "
                f"list of leaves it has {found.get(file, 0)}."
            )
    return leaves


def read_values(
    files: Files, folder: Path, saved: Mapping[str, Saved], wanted: Mapping[str, Region]
) -> Iterator[tuple[str, Tensor]]:
    """Read and verify the values of tensors, each as soon as it is complete.

    A piece is read whole, since its digest is that of all of it; of these, no more than a few are
    in memory beside what is wanted.

    Args:
        files: The file system.
        folder: The checkpoint.
        saved: All of its tensors, by path.
        wanted: Which values of which tensors.

    Raises:
        DamagedError: A file is missing, or differs from the manifest.
        UnreadableError: A file cannot be read now.
    """
    joined: dict[str, Tensor] = {}
    lacking = {path: len(region.run) for path, region in wanted.items()}
    for path in [path for path, count in lacking.items() if not count]:
        yield path, _memory(folder, path, saved[path], wanted[path])
    for file, inside in by_file(saved):
        leaves = {path: leaf for path, (_, leaf) in inside.items()}
        shared = {
            path: both
            for path, (piece, _) in inside.items()
            if path in wanted and (both := common(piece.region, wanted[path]))
        }
        if not shared:
            continue
        for path, values in tensor_file.read(files, folder / file, leaves, shared.__contains__):
            if inside[path][0].region == wanted[path]:
                yield path, values
                continue
            if path not in joined:
                joined[path] = _memory(folder, path, saved[path], wanted[path])
            lacking[path] -= copy(values.reshape(-1), joined[path].view(-1), shared[path])
            if not lacking[path]:
                yield path, joined.pop(path)


def _memory(folder: Path, path: str, saved: Saved, region: Region) -> Tensor:
    nbytes = saved.dtype.itemsize * len(region.run)
    memory = tensor_file.memory_for(folder, path, nbytes)
    return memory.view(saved.dtype).reshape(region.shape)
