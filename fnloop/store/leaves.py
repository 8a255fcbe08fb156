"""A manifest's entries for tensors, by leaf path: dtype, shape, and digests of their bytes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from fnloop.store.schema import fault_in_path, is_piece_file, is_whole
from fnloop.values.regions import Box, Region, sizes, volume

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
_PIECE = {"file", "start", "count", "sha256"}


class Leaf(NamedTuple):
    """One tensor in a file.

    Attributes:
        dtype: The tensor's dtype.
        shape: The tensor's shape.
        sha256: Hexadecimal digest of its bytes, row-major and little-endian.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str

    @property
    def numel(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * self.numel

    def entry(self) -> dict[str, Any]:
        """As JSON values."""
        return {**_kind(self.dtype, self.shape), "sha256": self.sha256}


class Piece(NamedTuple):
    """Some of a tensor's values, in one of a checkpoint's files.

    Attributes:
        file: The file's name.
        region: Which values: a run of all, or of those of a slice along one dimension.
        sha256: Hexadecimal digest of their bytes.
    """

    file: str
    region: Region
    sha256: str

    def entry(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """As JSON values, for a tensor of this shape."""
        box, run = self.region
        dim = next((i for i, size in enumerate(shape) if len(box[i]) < size), None)
        cut = {} if dim is None else {"slice": [dim, box[dim].start, box[dim].stop]}
        run = {"start": run.start, "count": len(run)}
        return {"file": self.file, **cut, **run, "sha256": self.sha256}


class Saved(NamedTuple):
    """A manifest's entry for one tensor, whole or in pieces.

    Attributes:
        dtype: The tensor's dtype.
        shape: The tensor's shape.
        pieces: Where its values are: slice by slice, each in order and without gaps.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def numel(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * self.numel

    def leaf(self, piece: Piece) -> Leaf:
        """A piece as it is in its file."""
        return Leaf(self.dtype, piece.region.shape, piece.sha256)

    def entry(self) -> dict[str, Any]:
        """As JSON values."""
        pieces = [piece.entry(self.shape) for piece in self.pieces]
        return {**_kind(self.dtype, self.shape), "pieces": pieces}

    @classmethod
    def of_one(cls, entry: Any, file: str) -> Saved:
        """From an entry of format 1, in which all tensors are in one file.

        Raises:
            ValueError: It is not a valid entry.
        """
        if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "sha256"}:
            raise ValueError("it is not a dtype, a shape and a sha256")
        dtype, shape = _kind_in(entry)
        return cls(dtype, shape, (Piece(file, Region.all(shape), _digest_in(entry)),))

    @classmethod
    def of(cls, entry: Any) -> Saved:
        """The inverse of `entry`.

        Raises:
            ValueError: It is not a valid entry.
        """
        if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "pieces"}:
            raise ValueError("it is not a dtype, a shape and pieces")
        dtype, shape = _kind_in(entry)
        if not isinstance(entry["pieces"], list):
            raise ValueError("its pieces are no list")
        saved = cls(dtype, shape, tuple([_piece_in(piece, shape) for piece in entry["pieces"]]))
        _check_all_there(saved)
        return saved


def files_in(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The files of a checkpoint's tensors, and the bytes of each.

    >>> files_in({"format": 1, "file": "state.safetensors", "bytes": 8})
    {'state.safetensors': 8}
    """
    if manifest["format"] == 1:
        return {manifest["file"]: manifest["bytes"]}
    return dict(manifest["files"])


def saved_from(manifest: Mapping[str, Any]) -> dict[str, Saved]:
    """The tensors in a manifest, by path.

    Raises:
        ValueError: A path or an entry is invalid; the message names it.
    """
    leaves: dict[str, Saved] = {}
    for path, entry in manifest["leaves"].items():
        if fault := fault_in_path(path):
            raise ValueError(f"{path[:80]!r}: its path {fault}")
        try:
            one = manifest["format"] == 1
            leaves[path] = Saved.of_one(entry, manifest["file"]) if one else Saved.of(entry)
        except ValueError as error:
            raise ValueError(f"{path[:80]!r}: {error}") from None
    # With "/" sorted before all other characters, children follow directly after their parent.
    ordered = sorted(path.replace("/", "\0") for path in leaves)
    for above, below in itertools.pairwise(ordered):
        if below.startswith(above + "\0"):
            path = above.replace("\0", "/")
            raise ValueError(f"{path[:80]!r}: it is a leaf, and there are others below it")
    return leaves


def by_file(saved: Mapping[str, Saved]) -> Iterator[tuple[str, dict[str, tuple[Piece, Leaf]]]]:
    """Each file, with its pieces by path, and what each is there."""
    found: dict[str, dict[str, tuple[Piece, Leaf]]] = {}
    for path, tensor in saved.items():
        for piece in tensor.pieces:
            found.setdefault(piece.file, {})[path] = piece, tensor.leaf(piece)
    yield from found.items()


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}


def _kind_in(entry: Mapping[str, Any]) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        what = repr(dtype[:40]) if isinstance(dtype, str) else type(dtype).__name__
        raise ValueError(f"its dtype is {what}, which is unknown")
    if not (isinstance(shape, list) and len(shape) <= 64 and all(map(_is_size, shape))):
        raise ValueError("its shape is no list of at most 64 sizes")
    if math.prod(size or 1 for size in shape) >= 2**56:
        raise ValueError(f"its shape is {shape}, which no tensor can have")
    return DTYPES[dtype], tuple(shape)


def _piece_in(entry: Any, shape: tuple[int, ...]) -> Piece:
    if not isinstance(entry, Mapping) or set(entry) - {"slice"} != _PIECE:
        raise ValueError("a piece is not a file, a start, a count and a sha256")
    file, start, count = entry["file"], entry["start"], entry["count"]
    if not is_piece_file(file):
        raise ValueError("a piece's file is no name of a file of pieces")
    if not (_is_size(start) and _is_size(count) and count):
        raise ValueError("a piece's start or count is no number of values")
    box = list(map(range, shape))
    if "slice" in entry:
        dim, indices = _slice_in(entry["slice"], shape)
        box[dim] = indices
    return Piece(file, Region(tuple(box), range(start, start + count)), _digest_in(entry))


def _slice_in(entry: Any, shape: tuple[int, ...]) -> tuple[int, range]:
    if not (isinstance(entry, list) and len(entry) == 3 and all(map(_is_size, entry))):
        raise ValueError("a piece's slice is no dimension with a first and a last index")
    dim, start, stop = entry
    if not (dim < len(shape) and start < stop <= shape[dim] and stop - start < shape[dim]):
        raise ValueError(f"a piece's slice is {entry}, which is no part of the shape {list(shape)}")
    return dim, range(start, stop)


def _check_all_there(saved: Saved) -> None:
    """Raise `ValueError` unless the pieces are all values of a tensor, once and in order."""
    slices: list[Box] = []
    for box, pieces in itertools.groupby(saved.pieces, key=lambda piece: piece.region.box):
        slices.append(box)
        end = 0
        for piece in pieces:
            if piece.region.run.start != end:
                raise ValueError(f"its pieces leave a gap, or overlap, at value {end}")
            end = piece.region.run.stop
        if end != volume(box):
            whose = "shape" if sizes(box) == saved.shape else "slice"
            raise ValueError(f"its pieces have {end} values, and its {whose} {volume(box)}")
    if not slices and saved.numel:
        raise ValueError(f"its pieces have 0 values, and its shape {saved.numel}")
    _check_slices(slices, saved.shape)
    if len({piece.file for piece in saved.pieces}) < len(saved.pieces):
        raise ValueError("two of its pieces are in one file")


def _check_slices(slices: list[Box], shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless they are a tensor, cut along one dimension."""
    if len(slices) < 2 and all([sizes(box) == shape for box in slices]):
        return
    dims = {i for box in slices for i, size in enumerate(sizes(box)) if size < shape[i]}
    if len(dims) != 1:
        raise ValueError("its slices are not along one dimension")
    (dim,), end = dims, 0
    for box in slices:
        if box[dim].start != end:
            raise ValueError(f"its slices leave a gap, or overlap, at index {end}")
        end = box[dim].stop
    if end != shape[dim]:
        raise ValueError(f"its slices end at index {end}, and dimension {dim} at {shape[dim]}")


def _digest_in(entry: Mapping[str, Any]) -> str:
    sha256 = entry["sha256"]
    if not isinstance(sha256, str):
        raise ValueError("its sha256 is no text")
    if not _SHA256.fullmatch(sha256):
        raise ValueError("its sha256 is none")
    return sha256


def _is_size(value: Any) -> bool:
    return is_whole(value) and 0 <= value < 2**56
