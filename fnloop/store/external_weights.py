"""Read weights files of other tools, without running any code in them."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.leaves import CODES

KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which a file may hold its ``state_dict``."""

_DTYPES = {code: dtype for dtype, code in CODES.items()}
_LONGEST_HEADER = 100_000_000


def read_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a weights file, or of a mapping such as ``torch.load`` returns.

    Args:
        source: A ``.safetensors`` file, a mapping, or a file of ``torch.save``, which is read with
            ``weights_only=True``.

    Raises:
        CheckpointError: It cannot be read, holds no weights, or holds more than plain data.
    """
    if isinstance(source, Mapping):
        return _weights_in(source, "The mapping")
    path = Path(source)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, and load_state_dict reads a file of weights. A checkpoint of "
            "fnloop is read by fl.load(path, like=state)."
        )
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return _weights_in(_torch_file(path), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _torch_file(path: Path) -> Any:
    path.open("rb").close()  # raises OSError for a missing file
    try:
        # Files in the old format are no zip archives and cannot be memory-mapped.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():  # about unusual pickle protocols
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is no file of weights that torch.save wrote, or is damaged: {what}"
        ) from error


def _refusal(path: Path, error: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", error) or re.search(
        r"`?([\w]+(?:\.[\w]+)+)`? was not an allowed", error
    )
    what = f"{named[1]}, which is code" if named else "something else than tensors"
    return (
        f"{path} was refused: besides weights it holds {what}, and reading that could run anything "
        "its author wanted. If you trust the file, write its weights alone to another one, where "
        "the program that made it is installed:\n"
        f"  weights = torch.load({path.name!r}, weights_only=False, map_location='cpu')\n"
        "  torch.save(weights['state_dict'], 'weights.pt')"
    )


def _weights_in(held: Any, who: str) -> dict[str, Tensor]:
    """The tensors by name, which may be under one of `KEYS`."""
    if not isinstance(held, Mapping):
        raise CheckpointError(
            f"{who} holds a {type(held).__name__}; expected a state_dict, or a dict with one under "
            f"{', '.join(KEYS)}."
        )
    for key in KEYS:
        inside = held.get(key)
        if isinstance(inside, Mapping) and _tensors(inside):
            return _tensors(inside)
    found = _tensors(held)
    if not found:
        raise CheckpointError(
            f"{who} holds no weights; expected tensors by name, or a dict with them under "
            f"{', '.join(KEYS)}. It has: {', '.join(map(str, [*held][:12])) or 'nothing'}."
        )
    return found


def _tensors(held: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): leaf for name, leaf in held.items() if isinstance(leaf, Tensor)}


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped.

    Source: https://huggingface.co/docs/safetensors (format).
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise CheckpointError(f"{path} does not begin as a safetensors file does.")
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            places = {name: _place(entry, size - 8 - length) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged: its header does not describe its tensors."
            ) from error
    if not places:
        raise CheckpointError(f"{path} holds no tensor.")
    rest = size - 8 - length
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
    found: dict[str, Tensor] = {}
    for name, (dtype, shape, begin, end) in places.items():
        assert end <= rest
        part = data[begin:end]
        if part.data_ptr() % dtype.itemsize:
            part = part.clone()
        found[name] = part.view(dtype).reshape(shape)
    return found


def _place(entry: Any, rest: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    numbers = [*shape, begin, end]
    if not all(type(number) is int and 0 <= number < 2**56 for number in numbers):
        raise ValueError("a number that is none")
    count = dtype.itemsize
    for length in shape:
        count *= length
    if not (begin + count == end <= rest):
        raise ValueError("a tensor that is not in the file")
    return dtype, tuple(shape), begin, end
