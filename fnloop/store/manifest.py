"""What a checkpoint says about itself: one JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
_ENTRIES = {
    *("format", "fnloop", "torch", "cursor", "step", "model", "pipeline", "status", "metrics"),
    *("monitor", "config", "memos", "bytes", "leaves"),
}


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged, or of another model."""


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Args:
        path: The checkpoint's folder, such as ``runs/a/step-00001200``.

    Returns:
        ``format``, ``fnloop``, ``torch`` (versions); ``cursor`` (epoch, index, count) and ``step``;
        ``model`` and ``pipeline`` as text; ``status``; ``metrics`` (name to float); ``monitor``
        (name, mode, value) or None; ``config``; ``memos`` (of effects, by name); ``bytes`` (size of
        the file of tensors); ``leaves`` (path to dtype, shape, sha256).

    Raises:
        CheckpointError: There is no manifest, or it is damaged, or of a later format.
    """
    file = Path(path) / MANIFEST
    try:
        raw = json.loads(file.read_bytes())
        digest = raw.pop("digest")
        intact = digest == _digest(raw)
        later = raw["format"] > FORMAT
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(f"{path} is not a complete checkpoint: {file}: {why}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it is not a manifest.") from error
    if not intact:
        raise CheckpointError(f"{file} is damaged: its contents do not match its own digest.")
    if later:
        raise CheckpointError(
            f"{file} has format {raw['format']}, written by fnloop {raw['fnloop']}; this version "
            f"reads formats up to {FORMAT}. Install that fnloop or a later one."
        )
    if lacking := sorted(_ENTRIES - raw.keys()):
        raise CheckpointError(f"{file} is damaged: it lacks {', '.join(lacking)}.")
    return _decode(raw)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write, or replace, a folder's manifest: atomically, and durably once this returns."""
    body = encode(manifest)
    text = json.dumps({**body, "digest": _digest(body)}, indent=1)
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(text.encode())
        sync(file.fileno())
    os.replace(temporary, folder / MANIFEST)
    sync_folder(folder)


def amend(folder: Path, **changes: Any) -> None:
    """Change entries of a checkpoint's manifest."""
    write_manifest(folder, {**read_manifest(folder), **changes})


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """JSON values for `value`; nan and infinities, which JSON lacks, as ``{"$float": "nan"}``.

    Args:
        value: Numbers, text, None, and mappings and sequences of them.
        other: What to make of anything else.

    Raises:
        TypeError: There is something else, and no `other`.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Mapping):
        return {str(key): encode(entry, other) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(entry, other) for entry in value]
    if other is not None:
        return other(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} is no JSON value.")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        return {key: _decode(entry) for key, entry in value.items()}
    return [_decode(entry) for entry in value] if isinstance(value, list) else value


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def sync(descriptor: int) -> None:
    """Wait until what was written has reached the disk."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries (new names, renames) have reached the disk."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
