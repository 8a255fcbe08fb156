"""Read weights files of other tools, without running any code in them."""

from __future__ import annotations

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
from fnloop.store.files import open_plain
from fnloop.store.patience import read_error, read_may_pass
from fnloop.store.safetensors_file import read_safetensors
from fnloop.trees.show import printable

KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which a file may hold its ``state_dict``."""


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
        with open_plain(path) as stream:
            if path.suffix == ".safetensors":
                return read_safetensors(path, stream)
            return _weights_in(_torch_file(path), str(path))
    except OSError as error:
        raise read_error(path, error) from error


def _torch_file(path: Path) -> Any:
    try:
        # Files in the old format are no zip archives and cannot be memory-mapped.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check_names(path)
        with warnings.catch_warnings():  # about unusual pickle protocols
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:  # what a damaged file makes of torch.load may be anything
        if isinstance(error, OSError) and error.errno and read_may_pass(error):
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is no file of weights that torch.save wrote, or is damaged: {printable(what)}"
        ) from error


def _check_names(path: Path) -> None:
    """Refuse an archive with one name twice: readers differ in which of the two they take."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(
            f"{path} is damaged: its archive has the name '{printable(twice)}' twice."
        )


def _refusal(path: Path, error: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", error) or re.search(
        r"`?([\w]+(?:\.[\w]+)+)`? was not an allowed", error
    )
    what = f"{named[1]}, which is code" if named else "something else than tensors"
    new = "weights.pt" if path.name != "weights.pt" else "weights-alone.pt"
    lines = [
        "import torch",
        f"held = torch.load({str(path.absolute())!r}, weights_only=False, map_location='cpu')",
        f"places = [held.get(key) for key in {KEYS}] if isinstance(held, dict) else []",
        "found = [place for place in places if isinstance(place, (dict, torch.nn.Module))]",
        "held = found[0] if found else held",
        "weights = held.state_dict() if isinstance(held, torch.nn.Module) else held",
        "tensors = {name: t for name, t in weights.items() if isinstance(t, torch.Tensor)}",
        f"torch.save(tensors, {new!r})",
    ]
    return (
        f"{path} was refused: besides weights it holds {what}, and reading that could run anything "
        "its author wanted. If you trust the file, write its weights alone to another one, where "
        "the program that made it is installed, and load that:\n  " + "\n  ".join(lines)
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
        if isinstance(inside, Mapping) and (found := _tensors(inside, who)):
            return found
    found = _tensors(held, who)
    if not found:
        names = [printable(str(key), 40) for key in [*held][:12] if isinstance(key, (str, int))]
        raise CheckpointError(
            f"{who} holds no weights; expected tensors by name, or a dict with them under "
            f"{', '.join(KEYS)}. It has: {', '.join(names) or 'nothing'}."
        )
    return found


def _tensors(held: Mapping[Any, Any], who: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, leaf in held.items():
        if not isinstance(leaf, Tensor):
            continue
        if not isinstance(key, (str, int)):
            raise CheckpointError(f"{who} has a tensor under a {type(key).__name__}, not a name.")
        name = str(key)
        if name in found:
            raise CheckpointError(f"{who} has two tensors of the name '{printable(name)}'.")
        _check_plain(name, leaf, who)
        found[name] = leaf
    return found


def _check_plain(name: str, leaf: Tensor, who: str) -> None:
    plain = leaf.layout is torch.strided and not leaf.is_meta and not leaf.is_nested
    if plain and not leaf.is_quantized and type(leaf) in (Tensor, torch.nn.Parameter):
        return
    kind = "meta" if leaf.is_meta else str(leaf.layout).removeprefix("torch.")
    kind = "quantized" if leaf.is_quantized else kind
    raise CheckpointError(
        f"{who}: the tensor '{printable(name)}' is no plain dense tensor with values (it is a "
        f"{type(leaf).__name__}, {kind}). Make it one where the file was written: "
        ".to_dense(), .dequantize(), or a model that is not on the device 'meta'."
    )
