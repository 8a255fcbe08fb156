"""The checkpoint format as docs/internals/checkpoint-format.md gives it: json, hashlib, struct.

Nothing of fnloop is used here. What this writes, `fl.load` reads; what `fl.save` writes, this
reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

DTYPES = {  # the manifest's name: what safetensors calls it, bytes of an element
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "complex64": ("C64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "complex128": (None, 16),
}


class Array(NamedTuple):
    """A tensor: its dtype by name, its shape, its bytes (row-major, little-endian)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def signed(body: bytes) -> bytes:
    """A manifest with the right digest; `body` begins with the newline after the first line."""
    return b'{"sha256": "' + sha256(body).encode() + b'",' + body


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return signed(b"\n" + json.dumps(manifest).encode("ascii")[1:])


def order(arrays: Mapping[str, Array]) -> list[str]:
    return sorted(arrays, key=lambda path: (-DTYPES[arrays[path].dtype][1], path))


def header_bytes(arrays: Mapping[str, Array]) -> bytes:
    header, end = {}, 0
    for path in order(arrays):
        dtype, shape, _ = arrays[path]
        code, size = DTYPES[dtype]
        start, end = end, end + size * math.prod(shape)
        described = (code, list(shape)) if code else ("U8", [end - start])
        header[path] = {
            "dtype": described[0],
            "shape": described[1],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def tensors_bytes(arrays: Mapping[str, Array]) -> bytes:
    return header_bytes(arrays) + b"".join(arrays[path].data for path in order(arrays))


def manifest_of(arrays: Mapping[str, Array], **changes: Any) -> dict[str, Any]:
    """The entries of a manifest for these tensors."""
    epoch, index, count = struct.unpack("<3q", arrays["cursor"].data)
    leaves = {
        path: {"dtype": dtype, "shape": list(shape), "sha256": sha256(data)}
        for path, (dtype, shape, data) in arrays.items()
    }
    return {
        "format": 1,
        "fnloop": "by hand",
        "torch": "none",
        "python": "none",
        "threads": 1,
        "device": "cpu",
        "cursor": {"epoch": epoch, "index": index, "count": count},
        "step": struct.unpack("<q", arrays["step"].data)[0],
        "key": struct.unpack("<q", arrays["key"].data)[0],
        "model": "",
        "pipeline": None,
        "status": "running",
        "metrics": {},
        "monitor": None,
        "config": {},
        "data": {},
        "memos": {},
        "structure": {},
        "file": "state.safetensors",
        "bytes": len(header_bytes(arrays)) + sum(len(array.data) for array in arrays.values()),
        "leaves": leaves,
        **changes,
    }


def write(root: Path, arrays: Mapping[str, Array], **changes: Any) -> Path:
    """Write a checkpoint with the right digests, and say where. (It is not synchronised.)"""
    manifest = manifest_of(arrays, **changes)
    folder = root / f"step-{struct.unpack('<3q', arrays['cursor'].data)[2]:08d}"
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(tensors_bytes(arrays))
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return folder


def cut(
    arrays: Mapping[str, Array], ranks: int, tensor: int, dims: Mapping[str, int]
) -> list[dict[str, tuple[dict[str, Any], Array]]]:
    """The pieces of each rank with where they are.

    Parameters and slots are cut into `tensor` slices along `dims`, these into `ranks` runs.
    """
    pieces: list[dict[str, tuple[dict[str, Any], Array]]] = [{} for _ in range(ranks * tensor)]
    for path, whole in arrays.items():
        runs = ranks if path.startswith(("params/", "slots/")) else 1
        for column in range(tensor if path in dims else 1):
            entry, array = {}, whole
            if path in dims:
                size = whole.shape[dims[path]] // tensor
                entry = {"slice": [dims[path], column * size, (column + 1) * size]}
                array = sliced(whole, *entry["slice"])
            size, count = DTYPES[array.dtype][1], math.prod(array.shape)
            length = -(-count // runs)
            for row in range(runs):
                start, stop = row * length, min((row + 1) * length, count)
                if start < stop:
                    shape = array.shape if stop - start == count else (stop - start,)
                    data = array.data[start * size : stop * size]
                    told = {**entry, "start": start, "count": stop - start}
                    pieces[row * tensor + column][path] = told, Array(array.dtype, shape, data)
    return pieces


def sliced(array: Array, dim: int, first: int, last: int) -> Array:
    """The indices from `first` to before `last` along a dimension."""
    dtype, shape, data = array
    step = math.prod(shape[dim + 1 :]) * DTYPES[dtype][1]
    rows = range(0, len(data), shape[dim] * step)
    parts = [data[row + first * step : row + last * step] for row in rows]
    return Array(dtype, (*shape[:dim], last - first, *shape[dim + 1 :]), b"".join(parts))


def joined(slices: Mapping[tuple[int, ...], bytes], shape: tuple[int, ...]) -> bytes:
    """The inverse of `sliced`: the bytes of a tensor of this shape, from all of its slices."""
    if not slices or () in slices:
        assert len(slices) < 2
        return b"".join(slices.values())
    ((dim, *_), *_) = slices
    assert [(dim, i) for i in range(shape[dim])] == [
        (d, i) for d, a, b in slices for i in range(a, b)
    ]
    rows, found = math.prod(shape[:dim]), b""
    for row in range(rows):
        for data in slices.values():
            step = len(data) // rows
            found += data[row * step : (row + 1) * step]
    return found


def write_pieces(
    root: Path,
    arrays: Mapping[str, Array],
    ranks: int,
    tensor: int = 1,
    dims: Mapping[str, int] | None = None,
    **changes: Any,
) -> Path:
    """Write a checkpoint in format 2, as so many ranks do."""
    folder = root / f"step-{struct.unpack('<3q', arrays['cursor'].data)[2]:08d}"
    folder.mkdir(parents=True)
    manifest = manifest_of(arrays)
    del manifest["file"], manifest["bytes"]
    leaves = {
        path: {"dtype": array.dtype, "shape": list(array.shape), "pieces": []}
        for path, array in arrays.items()
    }
    files = {}
    for rank, pieces in enumerate(cut(arrays, ranks, tensor, dims or {})):
        name = f"state-{rank:05d}.safetensors"
        for path, (entry, array) in pieces.items():
            piece = {"file": name, **entry, "sha256": sha256(array.data)}
            leaves[path]["pieces"].append(piece)
        if pieces:
            raw = tensors_bytes({path: array for path, (_, array) in pieces.items()})
            (folder / name).write_bytes(raw)
            files[name] = len(raw)
    for leaf in leaves.values():
        leaf["pieces"].sort(key=lambda piece: (piece.get("slice", []), piece["start"]))
    mesh = {"data": ranks, "tensor": tensor} if tensor > 1 else {"data": ranks}
    manifest = {**manifest, "format": 2, "mesh": mesh, "files": files, "leaves": leaves}
    (folder / "manifest.json").write_bytes(manifest_bytes({**manifest, **changes}))
    return folder


def read_pieces(folder: Path) -> dict[str, Array]:
    """The tensors of a checkpoint in format 2, every byte verified by assertions."""
    raw = (folder / "manifest.json").read_bytes()
    assert sha256(raw[78:]).encode() == raw[12:76]
    manifest = json.loads(b"{" + raw[79:], object_hook=_special)
    assert manifest["format"] == 2 and "file" not in manifest and "bytes" not in manifest
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["files"]}
    arrays = {}
    inside: dict[str, dict[str, Array]] = {name: {} for name in manifest["files"]}
    for path, leaf in manifest["leaves"].items():
        dtype, shape = leaf["dtype"], tuple(leaf["shape"])
        slices: dict[tuple[int, ...], bytes] = {}
        for piece in leaf["pieces"]:
            place, own = tuple(piece.get("slice", ())), shape
            if place:
                dim, first, last = place
                own = (*shape[:dim], last - first, *shape[dim + 1 :])
            data, before = _piece(folder / piece["file"], path), slices.get(place, b"")
            size, count = DTYPES[dtype][1], piece["count"]
            assert piece["start"] * size == len(before) and count * size == len(data) > 0
            assert sha256(data) == piece["sha256"]
            own = own if count == math.prod(own) else (count,)
            inside[piece["file"]][path] = Array(dtype, own, b"")
            slices[place] = before + data
        arrays[path] = Array(dtype, shape, joined(slices, shape))
        assert len(arrays[path].data) == DTYPES[dtype][1] * math.prod(shape), path
    for name, size in manifest["files"].items():
        file = (folder / name).read_bytes()
        assert len(file) == size and file.startswith(header_bytes(inside[name]))
    return arrays


def _piece(name: Path, path: str) -> bytes:
    file = name.read_bytes()
    (length,) = struct.unpack("<Q", file[:8])
    start, stop = json.loads(file[8 : 8 + length])[path]["data_offsets"]
    return file[8 + length :][start:stop]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """A checkpoint's manifest and tensors, every byte verified by assertions."""
    raw = (folder / "manifest.json").read_bytes()
    assert len(raw) <= 32 * 2**20
    first = re.match(rb'\{"sha256": "([0-9a-f]{64})",\n', raw)
    assert first and first[1].decode() == sha256(raw[78:])
    manifest = json.loads(b"{" + raw[79:].decode("ascii").encode(), object_hook=_special)
    assert manifest["format"] == 1
    arrays = {}
    file = (folder / manifest["file"]).read_bytes()
    for path, entry in manifest["leaves"].items():
        size = DTYPES[entry["dtype"]][1] * math.prod(entry["shape"])
        arrays[path] = Array(entry["dtype"], tuple(entry["shape"]), bytes(0))
        arrays[path] = arrays[path]._replace(data=b"\0" * size)
    header = header_bytes(arrays)
    assert file.startswith(header)
    position = len(header)
    for path in order(arrays):
        size = len(arrays[path].data)
        arrays[path] = arrays[path]._replace(data=file[position : position + size])
        assert sha256(arrays[path].data) == manifest["leaves"][path]["sha256"], path
        position += size
    assert position == len(file) == manifest["bytes"]
    return manifest, arrays


def _special(entries: dict[str, Any]) -> Any:
    if len(entries) != 1 or not next(iter(entries)).startswith("$"):
        return entries
    ((name, value),) = entries.items()
    if name.startswith("$$"):
        return {name[1:]: value}
    return {"$float": float, "$int": int}[name](value)
