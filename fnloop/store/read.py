"""The leaves of a checkpoint by its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.store import tensor_file
from fnloop.store.checkpoint_errors import DamagedError
from fnloop.store.leaves import Leaf, leaves_from
from fnloop.store.manifest import MANIFEST
from fnloop.store.schema import LONE


def leaves_in(manifest: Mapping[str, Any], folder: Path) -> dict[str, Leaf]:
    """A manifest's entries for leaves, by path.

    Raises:
        DamagedError: They are incomplete, or contradict the size of the file.
    """
    leaves = leaves_from(manifest["leaves"])
    if lacking := [path for path in LONE if path not in leaves]:
        raise DamagedError(f"{folder / MANIFEST} lacks the leaf {lacking[0]!r}, which all have.")
    size = tensor_file.bytes_of(leaves)
    if manifest["bytes"] != size:
        raise DamagedError(
            f"{folder / MANIFEST} says that its tensors have {manifest['bytes']} bytes, and by its "
            f"list of leaves they have {size}."
        )
    return leaves
