"""A manifest's entries for tensors: dtype, shape and digest, by leaf path."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from fnloop.store.schema import fault_in_path, is_whole

CODES = {
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
"""Names of dtypes in the safetensors format."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in [*CODES, torch.complex128]}
"""All dtypes that can be saved, by name."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Leaf(NamedTuple):
    """A manifest's entry for one tensor.

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
    def of(cls, entry: Any) -> Leaf:
        """The inverse of `entry`.

        Raises:
            ValueError: It is not a valid entry.
        """
        if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "sha256"}:
            raise ValueError("it is not a dtype, a shape and a sha256")
        dtype, shape, sha256 = entry["dtype"], entry["shape"], entry["sha256"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            what = repr(dtype[:40]) if isinstance(dtype, str) else type(dtype).__name__
            raise ValueError(f"its dtype is {what}, which is unknown")
        if not (isinstance(shape, list) and len(shape) <= 64 and all(map(_is_size, shape))):
            raise ValueError("its shape is no list of at most 64 sizes")
        if math.prod(size or 1 for size in shape) >= 2**56:
            raise ValueError(f"its shape is {shape}, which no tensor can have")
        if not isinstance(sha256, str):
            raise ValueError("its sha256 is no text")
        return cls(DTYPES[dtype], tuple(shape), sha256)


def leaves_from(entries: Mapping[str, Any]) -> dict[str, Leaf]:
    """The leaves in a manifest, by path.

    Raises:
        ValueError: A path or an entry is invalid; the message names it.
    """
    leaves: dict[str, Leaf] = {}
    for path, entry in entries.items():
        if fault := fault_in_path(path):
            raise ValueError(f"{path[:80]!r}: its path {fault}")
        try:
            leaves[path] = Leaf.of(entry)
        except ValueError as error:
            raise ValueError(f"{path[:80]!r}: {error}") from None
        if not _SHA256.fullmatch(leaves[path].sha256):
            raise ValueError(f"{path[:80]!r}: its sha256 is none")
    # With "/" sorted before all other characters, children follow directly after their parent.
    ordered = sorted(path.replace("/", "\0") for path in leaves)
    for above, below in itertools.pairwise(ordered):
        if below.startswith(above + "\0"):
            path = above.replace("\0", "/")
            raise ValueError(f"{path[:80]!r}: it is a leaf, and there are others below it")
    return leaves


def _is_size(value: Any) -> bool:
    return is_whole(value) and 0 <= value < 2**56
