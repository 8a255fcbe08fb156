"""What a checkpoint says about itself: one JSON file, which carries its own digest."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fnloop.store import schema
from fnloop.store.errors import CheckpointError, DamagedError
from fnloop.store.files import Files, as_path, files_for

FORMAT = 1
MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
LARGEST = 32 * 2**20
"""Bytes in a manifest, at most: so that a made-up one costs little time and memory."""


def read_manifest(path: str | os.PathLike[str], *, files: Files | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Args:
        path: The checkpoint's folder, such as ``runs/a/step-00001200``.
        files: What reads; default the disk, or fsspec for a URL.

    Returns:
        ``format``, ``fnloop``, ``torch``, ``python`` (versions), ``threads`` and ``device``;
        ``cursor`` (epoch, index, count), ``step`` and ``key``; ``model`` and ``pipeline`` as text;
        ``status``; ``metrics`` (name to float); ``monitor`` (name, mode, value) or None;
        ``config``; ``data`` (what the data is, and where it stands); ``memos`` (of effects, by
        name); ``structure`` (path to kind of container, where it is no dict); ``file`` and
        ``bytes`` (the file of tensors and its size); ``leaves`` (path to dtype, shape, sha256).

    Raises:
        CheckpointError: There is no manifest, or it is damaged, or of a later format.
    """
    folder = as_path(path)
    file = folder / MANIFEST
    try:
        with (files or files_for(folder)).open(file) as stream:
            if stream.seek(0, io.SEEK_END) > LARGEST:
                raise DamagedError(f"{file} is larger than any manifest: {LARGEST} bytes.")
            stream.seek(0)
            raw = _read_all(stream)
    except OSError as error:
        why = error.strerror or error
        raise DamagedError(f"{folder} is not a complete checkpoint: {file}: {why}.") from error
    return _parse(raw, file)


def put_manifest(folder: Path, manifest: Mapping[str, Any], files: Files) -> None:
    """Write a folder's first manifest, or on a remote store any."""
    _write(folder / MANIFEST, _text(manifest), files)


def amend(folder: Path, files: Files, **changes: Any) -> None:
    """Change entries of a checkpoint's manifest: atomically, and durably once this returns."""
    raw = _text({**read_manifest(folder, files=files), **changes})
    if not files.renames:  # a file of that name is replaced when the new one is whole
        _write(folder / MANIFEST, raw, files)
        return
    temporary = folder / f".{MANIFEST}.tmp"
    if files.exists(temporary):  # of a process that died
        files.remove(temporary)
    _write(temporary, raw, files)
    files.rename(temporary, folder / MANIFEST)
    files.sync(folder)


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """JSON values for `value`.

    What not every reader of JSON takes is written as ``{"$float": "nan"}`` (nan and infinities) or
    ``{"$int": "18446744073709551616"}`` (beyond 64 bits).

    Args:
        value: Numbers, text, None, and mappings and sequences of them.
        other: What to make of anything else.

    Raises:
        TypeError: There is something else, and no `other`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else {"$int": str(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Mapping):
        return {str(key): encode(entry, other) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(entry, other) for entry in value]
    if other is not None:
        return other(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} is no JSON value.")


def _write(file: Path, raw: bytes, files: Files) -> None:
    output = files.create(file)
    try:
        write_all(output, raw)
        output.sync()
    finally:
        output.close()


def write_all(output: Any, data: Any) -> None:
    """Write all of `data`: a file may take less of it at a time."""
    rest = memoryview(data).cast("B")
    while rest:
        written = output.write(rest)
        rest = rest[len(rest) if written is None else written :]


def _read_all(stream: Any) -> bytes:
    parts: list[bytes] = []
    while part := stream.read(1 << 20):
        parts.append(part)
    return b"".join(parts)


def _text(manifest: Mapping[str, Any]) -> bytes:
    """The file's bytes: a first line with the digest of all that follows it."""
    body = json.dumps(encode(manifest), indent=1)[1:].encode()
    raw = b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode() + body
    if len(raw) > LARGEST:
        parts = {name: len(json.dumps(encode(part))) for name, part in manifest.items()}
        largest = max(parts, key=lambda name: parts[name])
        raise ValueError(
            f"The checkpoint's manifest would have {len(raw)} bytes, and at most {LARGEST} are "
            f"read again. The largest entry is {largest!r} with {parts[largest]}: usually a "
            "history with a row for every step (fl.History(every=...)), or a large configuration."
        )
    return raw


def _parse(raw: bytes, file: Path) -> dict[str, Any]:
    first, newline, rest = raw.partition(b"\n")
    digest = hashlib.sha256(newline + rest).hexdigest()
    if not (first.startswith(b'{"sha256": "') and first.endswith(b'",') and len(first) == 78):
        raise DamagedError(f"{file} is damaged: it is not a manifest.")
    if first[12:76] != digest.encode():
        raise DamagedError(f"{file} is damaged: its contents do not match its own digest.")
    try:
        manifest = json.loads(
            b"{" + rest,
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
        later = manifest.get("format", 0) > FORMAT
    except (ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise DamagedError(f"{file} is damaged: it is not a manifest.") from error
    if later:
        raise CheckpointError(
            f"{file} has format {manifest['format']}, written by fnloop "
            f"{manifest.get('fnloop', '?')}; this version reads formats up to {FORMAT}. Install "
            "that fnloop or a later one."
        )
    if fault := schema.fault_in(manifest):
        raise DamagedError(f"{file} is damaged: {fault}.")
    return manifest


def _object(pairs: list[tuple[str, Any]]) -> Any:
    entries = dict(pairs)
    if len(pairs) == 1 and pairs[0][0] in _SPECIAL:
        return _SPECIAL[pairs[0][0]](pairs[0][1])
    if len(entries) < len(pairs):
        raise ValueError("a name that comes twice")
    return entries


_SPECIAL: dict[str, Callable[[str], Any]] = {"$float": float, "$int": int}


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**64
    if not -(2**63) <= value < 2**63 or text == "-0":
        raise ValueError(text[:20])
    return value
