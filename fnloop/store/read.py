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
    files: Files, folder: Path, saved: Mapping[str, Saved], runs: Mapping[str, range]
) -> Iterator[tuple[str, Tensor]]:
    """Read and verify the values of tensors, each as soon as it is complete.

    Args:
        files: The file system.
        folder: The checkpoint.
        saved: All of its tensors, by path.
        runs: Which values of which tensors are wanted, row-major. What is not the whole tensor is
            flat.

    Raises:
        DamagedError: A file is missing, or differs from the manifest.
        UnreadableError: A file cannot be read now.
    """
    joined: dict[str, Tensor] = {}
    lacking = {path: len(run) for path, run in runs.items()}
    for path in [path for path, count in lacking.items() if not count]:
        yield path, _memory(folder, path, saved[path], 0).reshape(_shape(saved[path], runs[path]))
    for file, inside in by_file(saved):
        leaves = {path: leaf for path, (_, leaf) in inside.items()}
        shared = {
            path: range(max(run.start, piece.start), min(run.stop, piece.stop))
            for path, (piece, _) in inside.items()
            if (run := runs.get(path))
        }
        wanted = {path for path, both in shared.items() if both}
        if not wanted:
            continue
        for path, values in tensor_file.read(files, folder / file, leaves, wanted.__contains__):
            piece, run, both = inside[path][0], runs[path], shared[path]
            if len(both) == piece.count == len(run):  # all of it, and nothing else
                yield path, values
                continue
            if path not in joined:
                joined[path] = _memory(folder, path, saved[path], len(run))
            part = values.reshape(-1)[both.start - piece.start : both.stop - piece.start]
            joined[path][both.start - run.start : both.stop - run.start].copy_(part)
            lacking[path] -= len(both)
            if not lacking[path]:
                yield path, joined.pop(path).reshape(_shape(saved[path], run))


def _memory(folder: Path, path: str, saved: Saved, count: int) -> Tensor:
    nbytes = saved.dtype.itemsize * count
    return tensor_file.memory_for(folder, path, nbytes).view(saved.dtype)


def _shape(saved: Saved, run: range) -> tuple[int, ...]:
    return saved.shape if len(run) == saved.numel else (len(run),)
