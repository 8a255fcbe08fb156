"""Read a safetensors file that another program wrote."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.leaves import CODES
from fnloop.trees.show import printable

_DTYPES = {code: dtype for dtype, code in CODES.items()}
_LONGEST_HEADER = 100_000_000


class _Place(NamedTuple):
    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_safetensors(path: Path, stream: io.FileIO) -> dict[str, Tensor]:
    """The tensors of an open safetensors file, memory-mapped.

    As the format demands, they must fill the file, without holes or overlaps, under one name each.

    Raises:
        CheckpointError: It is not such a file.

    Source: https://huggingface.co/docs/safetensors (format).
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
        raise CheckpointError(f"{path} does not begin as a safetensors file does.")
    try:
        header = json.loads(_exactly(stream, length), object_pairs_hook=_once)
        places = [_place(n, entry) for n, entry in header.items() if n != "__metadata__"]
        _check_filled(places, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = printable(str(error)) if type(error) is ValueError else "it is no valid header"
        raise CheckpointError(
            f"{path} is damaged: its header does not describe its tensors: {why}."
        ) from error
    if not places:
        raise CheckpointError(f"{path} holds no tensor.")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
    return {place.name: _tensor(path, data, place) for place in places}


def _exactly(stream: io.FileIO, length: int) -> bytes:
    parts: list[bytes] = []
    while length and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{printable(twice)}' is there twice")
    return entries


def _place(name: str, entry: Mapping[str, Any]) -> _Place:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    numbers = [*shape, begin, end]
    if not all(type(number) is int and 0 <= number < 2**56 for number in numbers):
        raise ValueError(f"'{printable(name)}' has a size or an offset that is none")
    if entry["dtype"] not in _DTYPES:
        dtype = printable(str(entry["dtype"]), 40)
        raise ValueError(f"'{printable(name)}' has the dtype {dtype!r}, which is unknown")
    dtype = _DTYPES[entry["dtype"]]
    if len(shape) > 64 or math.prod(length or 1 for length in shape) >= 2**56:
        raise ValueError(f"'{printable(name)}' has a shape that no tensor has")
    if end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"'{printable(name)}' has a shape that does not fit its bytes")
    return _Place(begin, end, name, dtype, tuple(shape))


def _check_filled(places: list[_Place], size: int) -> None:
    ends = [0, *(place.end for place in sorted(places))]
    for end, place in itertools.zip_longest(ends, sorted(places)):
        begin = size if place is None else place.begin
        if begin != end:
            what = "at the end" if place is None else f"at '{printable(place.name)}'"
            how = "overlap, or are not in the file" if begin < end else "leave a hole"
            raise ValueError(f"the tensors {how}, {what}")


def _tensor(path: Path, data: Tensor, place: _Place) -> Tensor:
    part = data[place.begin : place.end]
    if part.data_ptr() % place.dtype.itemsize:
        part = part.clone()
    # Kernels expect bools to be 0 or 1; the bytes of a file may be others.
    values = part.ne(0) if place.dtype == torch.bool else part.view(place.dtype)
    return values.reshape(place.shape)
