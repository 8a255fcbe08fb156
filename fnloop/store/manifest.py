"""A checkpoint's manifest: one JSON file with its own digest."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.names.keywords import explained
from fnloop.store import schema
from fnloop.store.checkpoint_errors import CheckpointError, DamagedError, UnfinishedError
from fnloop.store.files import Files, as_path, files_for, reason_of, write_all, written
from fnloop.store.leaves import saved_from
from fnloop.store.patience import patiently, read_error, read_may_pass
from fnloop.trees.json_codec import from_text, to_text, too_many_in
from fnloop.values.cursor import Cursor, epoch_of
from fnloop.values.signals import passing_over

ONE_FILE, PIECES = 1, 2
"""The formats: all tensors whole in one file, or a file of pieces from each rank."""
NEWEST = PIECES
MANIFEST = "manifest.json"
UNFINISHED = ".manifest.json.tmp"
TENSORS = "state.safetensors"
LARGEST = 32 * 2**20
"""Maximum bytes of a manifest, so that a forged one costs little time and memory."""
_COUNT = re.compile(r"\.?step-([0-9]{1,19})(?![^.])")


@explained
def read_manifest(path: str | os.PathLike[str], *, files: Files | None = None) -> dict[str, Any]:
    """A checkpoint's manifest.

    Args:
        path: The checkpoint's folder, such as ``runs/a/step-00001200``.
        files: The file system; default the disk, or fsspec for a URL.

    Returns:
        ``run`` (the identity of the run, or None); ``format``, ``fnloop``, ``torch``, ``python``
        (versions), ``threads`` and ``device``; ``cursor`` (epoch, index, count), ``step`` and
        ``key``; ``model`` and ``pipeline`` as text; ``status``; ``metrics`` (name to float);
        ``monitor`` (name, mode, value) or None; ``config``; ``data`` (description and position of
        the data); ``memos`` (of effects, by name); ``pages`` (path in the memos to the digest of a
        file beside the checkpoints); ``structure`` (path to kind of container, where it is no
        dict); ``file`` and ``bytes`` (the file of tensors and its size); ``leaves`` (path to dtype,
        shape, sha256). Checkpoints of earlier versions lack ``run`` and ``pages``. One of a state
        that was divided among ranks has ``mesh`` (the ranks by axis) and ``files`` (name to size)
        in place of ``file`` and ``bytes``, and its ``leaves`` have ``pieces`` (in which file which
        values are, as each rank had them) in place of ``sha256``.

    Raises:
        CheckpointError: There is no manifest, or it is damaged, of a later format, or for another
            count than the folder's name says; or it cannot be read now (also an ``OSError``).
    """
    folder = as_path(path)
    file = folder / MANIFEST
    store = files or files_for(folder)
    try:
        raw = patiently(lambda: _read(store, file))
    except OSError as error:
        if read_may_pass(error):
            raise read_error(file, error) from error
        kind = DamagedError if store.renames else UnfinishedError
        raise kind(f"{folder} is not a complete checkpoint: {file}: {reason_of(error)}.") from error
    manifest = _parse(raw, file)
    count, named = manifest["cursor"]["count"], _COUNT.match(folder.name)
    if named and int(named[1]) != count:
        raise DamagedError(
            f"{folder} holds the checkpoint of count {count}: the folder was renamed or copied. "
            f"Call it step-{count:08d}, or something that does not begin with step-."
        )
    return manifest


def put_manifest(folder: Path, manifest: Mapping[str, Any], files: Files) -> None:
    """Write the manifest of a new checkpoint; on a remote store, replace one, too."""
    _write(folder / MANIFEST, _text(manifest), files)


def amend(folder: Path, files: Files, **changes: Any) -> None:
    """Change entries of a checkpoint's manifest, atomically; on the disk when this returns."""
    raw = _text({**read_manifest(folder, files=files), **changes})
    if not files.renames:  # the upload replaces the file when it is complete
        _write(folder / MANIFEST, raw, files)
        return
    temporary = folder / UNFINISHED
    if files.exists(temporary):  # left by a killed process
        files.remove(temporary)
    try:
        _write(temporary, raw, files)
        files.rename(temporary, folder / MANIFEST)
    except BaseException:
        with passing_over(OSError):
            files.remove(temporary)
        raise
    files.sync(folder)


def _write(file: Path, raw: bytes, files: Files) -> None:
    with written(files, file) as output:
        write_all(output, raw)


def _read(files: Files, file: Path) -> bytearray:
    with files.open(file) as opened:
        stream: Any = opened
        size = stream.seek(0, io.SEEK_END)
        if size > LARGEST:
            raise DamagedError(f"{file} is larger than any manifest: {LARGEST} bytes.")
        stream.seek(0)
        raw, filled = bytearray(size), 0
        while filled < size and (got := stream.readinto(memoryview(raw)[filled:])):
            filled += got
        return raw


def _text(manifest: Mapping[str, Any]) -> bytes:
    """The file's bytes, without the largest of what is only for show where they would be too many.

    Raises:
        ValueError: They are too many with the tensors' entries alone.
    """
    raw, fault = _with_digest(to_text(manifest))
    while fault:
        name, smaller = _without_largest(manifest)
        if smaller is None:
            raise ValueError(
                f"The checkpoint's manifest would have {fault}, because of its {name}."
            )
        warnings.warn(
            f"{name} is too large for a checkpoint's manifest, and is left out; the state is "
            "saved. What grows with a run belongs in a file of its own.",
            stacklevel=4,
        )
        manifest = smaller
        raw, fault = _with_digest(to_text(manifest))
    return raw


def _with_digest(text: str) -> tuple[bytes, str]:
    """The first line has the digest of all that follows; also returns why it is too large."""
    body = text[1:].encode()
    raw = b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode() + body
    large = f"{len(raw)} bytes (at most {LARGEST} can be loaded)" if len(raw) > LARGEST else ""
    return raw, too_many_in(text) or large


def _without_largest(manifest: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Which entry is the largest, and the manifest without it; None if it is needed to load."""
    memos, data = manifest["memos"], manifest["data"]
    parts: dict[str, tuple[Any, dict[str, Any]]] = {
        "the configuration": (manifest["config"], {"config": {}}),
        "the metrics": (manifest["metrics"], {"metrics": {}}),
        "the pipeline's description": (manifest["pipeline"], {"pipeline": None}),
        "the data's description": (data.get("about"), {"data": {**data, "about": {}}}),
        "tensors' entries": (manifest["leaves"], {}),
        "list of containers": (manifest["structure"], {}),
        "data's position": (data.get("position"), {}),
    }
    for effect, memo in memos.items():
        others = {name: other for name, other in memos.items() if name != effect}
        parts[f"the memo of the effect {effect!r}"] = (memo, {"memos": others})
    name = max(parts, key=lambda name: len(to_text(parts[name][0])))
    less = parts[name][1]
    return name, {**manifest, **less} if less else None


def _parse(raw: bytearray, file: Path) -> dict[str, Any]:
    if not (raw.startswith(b'{"sha256": "') and raw.startswith(b'",\n', 76)):
        raise DamagedError(f"{file} is damaged: it is not a manifest.")
    body = memoryview(raw)[78:]
    if not raw.startswith(hashlib.sha256(body).hexdigest().encode(), 12):
        raise DamagedError(f"{file} is damaged: its contents do not match its own digest.")
    body[0] = ord("{")  # in place of the first line
    try:
        manifest = from_text(str(body, "ascii"))
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: it is not a manifest ({error}).") from error
    if not isinstance(manifest, dict) or "sha256" in manifest:
        raise DamagedError(f"{file} is damaged: it is not a manifest.")
    if schema.is_whole(manifest.get("format")) and manifest["format"] > NEWEST:
        version = manifest.get("fnloop")
        known = isinstance(version, str) and version.isprintable()
        raise CheckpointError(
            f"{file} has format {manifest['format']}, written by fnloop "
            f"{str(version)[:20] if known else '?'}; this version reads formats up to {NEWEST}. "
            "Install that fnloop or a later one."
        )
    if fault := schema.fault_in(manifest):
        raise DamagedError(f"{file} is damaged: {fault}.")
    try:
        saved_from(manifest)
    except ValueError as error:
        raise DamagedError(f"{file} has a bad list of leaves, at {error}.") from error
    return manifest


def standing(manifest: Mapping[str, Any]) -> tuple[str, int, int]:
    """How a run stands in a checkpoint: its status in a word, its epoch and the batches drawn.

    >>> standing({"status": "running", "cursor": {"epoch": 1, "index": 32, "count": 11}})
    ('unfinished', 2, 11)
    """
    status, cursor = manifest["status"], Cursor(**manifest["cursor"])
    return "unfinished" if status == "running" else status, epoch_of(cursor), cursor.count
