"""The leaves of one checkpoint, as they are on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fnloop.store import tensors
from fnloop.store.errors import DamagedError
from fnloop.store.files import Files
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.store.schema import fault_in_path
from fnloop.store.tensors import Leaf


def leaves_in(manifest: Mapping[str, Any], folder: Path) -> dict[str, Leaf]:
    """What a manifest says about each leaf, by path.

    Raises:
        DamagedError: It says something that cannot be.
    """
    path = ""
    try:
        leaves: dict[str, Leaf] = {}
        for path, entry in manifest["leaves"].items():
            if fault := fault_in_path(path):
                raise ValueError(f"its path {fault}")
            leaves[path] = Leaf.of(entry)
        return leaves
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(
            f"{folder / MANIFEST} has a bad list of leaves, at {path[:80]!r}: {error}."
        ) from error


def read_leaves(
    folder: Path,
    files: Files,
    manifest: Mapping[str, Any] | None = None,
    only: Callable[[str], bool] = lambda path: True,
) -> Iterator[tuple[str, Tensor]]:
    """Pairs of path and tensor, each verified, on the CPU.

    Raises:
        DamagedError: Something of the checkpoint is missing or damaged.
    """
    manifest = manifest or read_manifest(folder, files=files)
    yield from tensors.read(files, folder / manifest["file"], leaves_in(manifest, folder), only)


def verify(folder: Path, files: Files) -> None:
    """Read all of a checkpoint, and compare every digest.

    Raises:
        DamagedError: Something of it is missing or damaged.
    """
    manifest = read_manifest(folder, files=files)
    tensors.verify(files, folder / manifest["file"], leaves_in(manifest, folder))
