"""Tensors by name in one file: the safetensors format, written and read in a stream.

A tensor at a time is on its way, so that saving costs no second copy of the state; every tensor's
digest is taken on the way. Any safetensors reader opens the file.

Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.store.manifest import CheckpointError

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in [*_CODES, torch.complex128]}
_LONGEST_HEADER = 100_000_000


class Leaf(NamedTuple):
    """What the manifest says about one tensor.

    Attributes:
        dtype: The tensor's dtype.
        shape: The tensor's shape.
        sha256: Hexadecimal digest of its bytes, row-major and little-endian.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * math.prod(self.shape)

    def entry(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "sha256": self.sha256,
        }

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Leaf:
        """The inverse of `entry`."""
        shape = tuple(entry["shape"])
        if any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"shape {entry['shape']}")
        return cls(_DTYPES[entry["dtype"]], shape, str(entry["sha256"]))


def check_storable(path: str, leaf: Any) -> Tensor:
    """The leaf as a detached tensor.

    Raises:
        TypeError: It is none, or one whose values are not at hand.
    """
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"The state's leaf {path!r} is {type(leaf).__name__} {leaf!r}, and only tensors are "
            "saved. Every leaf of a State is a tensor: put torch.tensor(...) there."
        )
    leaf = leaf.detach()
    if type(leaf) is not Tensor or leaf.layout != torch.strided or leaf.is_meta:
        raise TypeError(
            f"The state's leaf {path!r} is a {type(leaf).__name__} ({leaf.layout}, on "
            f"{leaf.device}), and only plain dense tensors are saved."
        )
    if leaf.dtype not in _DTYPES.values():
        raise TypeError(f"The state's leaf {path!r} has dtype {leaf.dtype}, which cannot be saved.")
    return leaf


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """About how many bytes `write` needs."""
    return sum(t.numel() * t.element_size() + len(path) + 120 for path, t in tensors.items())


def write(file: io.BufferedWriter, tensors: Mapping[str, Tensor]) -> dict[str, Leaf]:
    """Write `tensors`, and say what was written."""
    # Wide elements first, so that each tensor starts at a multiple of its element's size.
    order = sorted(tensors, key=lambda path: (-tensors[path].element_size(), path))
    header: dict[str, Any] = {}
    end = 0
    for path in order:
        tensor = tensors[path]
        start, end = end, end + tensor.numel() * tensor.element_size()
        code, shape = _CODES.get(tensor.dtype), list(tensor.shape)
        if code is None:  # safetensors has no name for it: its bytes, and the manifest's dtype
            code, shape = "U8", [end - start]
        header[path] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    leaves: dict[str, Leaf] = {}
    for path in order:
        data = _bytes(tensors[path])
        file.write(data)
        digest = hashlib.sha256(data).hexdigest()
        leaves[path] = Leaf(tensors[path].dtype, tuple(tensors[path].shape), digest)
    return {path: leaves[path] for path in tensors}


def read(file: Path, leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, Tensor]]:
    """Read and verify `leaves`, each into memory of its own.

    Raises:
        CheckpointError: The file is missing or is not what the manifest says.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header, start = _header(stream, size, file)
            for path, leaf in leaves.items():
                try:
                    begin, end = header[path]["data_offsets"]
                    fits = type(begin) is int and begin >= 0 and end == begin + leaf.nbytes
                except (KeyError, TypeError, ValueError):
                    fits, begin, end = False, 0, 0
                if not fits or start + end > size:
                    raise CheckpointError(
                        f"{file}: the tensor {path!r} is not where its manifest says, or not all "
                        "of it: the file is damaged, truncated or not this checkpoint's."
                    )
                stream.seek(start + begin)
                data = torch.empty(leaf.nbytes, dtype=torch.uint8)
                memory: Any = data.numpy()
                got = stream.readinto(memory)
                if got != leaf.nbytes or hashlib.sha256(memory).hexdigest() != leaf.sha256:
                    raise CheckpointError(
                        f"{file}: the bytes of tensor {path!r} are not those that were saved "
                        "(their sha256 differs): the file is damaged."
                    )
                yield path, data.view(leaf.dtype).reshape(leaf.shape)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error


def _header(stream: io.BufferedReader, size: int, file: Path) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(stream.read(8), "little")
    try:
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ValueError("header length")
        header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("header type")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} does not begin with a safetensors header: it is damaged or truncated."
        ) from error
    return header, 8 + length


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes, row-major, on the CPU; without a copy where they are there already."""
    dense = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    # Not reshape(-1): a single element may keep a stride of 2, which view() refuses.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
