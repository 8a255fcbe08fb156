"""Arrays of any dtype as tensors that can be indexed, or an error that says what to do."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import torch
from torch import Tensor

_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def from_array(array: np.ndarray, path: str) -> Tensor:
    """The array as a tensor, without a copy where possible.

    Args:
        array: It has at least one dimension.
        path: Its place in the data, for messages.

    Raises:
        ValueError: torch has no such dtype.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise _refusal(path, "is masked, and a tensor has no mask", "pass .filled(value)")
    if not array.dtype.isnative:
        wrong = f"has another byte order ({array.dtype.str}) than this machine"
        raise _refusal(path, wrong, "convert it: array.astype(array.dtype.newbyteorder())")
    fits = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array if fits else array.copy())
    except (TypeError, ValueError) as error:
        wrong = f"has dtype {array.dtype}, which torch does not support"
        raise _refusal(path, wrong, _remedy(array)) from error


def indexable(leaf: Tensor, path: str = "") -> Tensor:
    """`leaf`, or its bits as integers if torch cannot index its dtype.

    Raises:
        ValueError: It cannot be indexed at all.
    """
    first = torch.arange(1 if not leaf.ndim else min(1, len(leaf)), device=leaf.device)
    integer = _SAME_WIDTH.get(leaf.dtype.itemsize, torch.int64)
    for dtype in () if leaf.is_quantized else (leaf.dtype, integer):
        with contextlib.suppress(RuntimeError, TypeError):  # also NotImplementedError
            found = leaf if dtype == leaf.dtype else leaf.view(dtype)
            (found[:1] if leaf.ndim else found[None]).index_select(0, first)[first]
            return found
    raise ValueError(
        f"The tensor at {path or 'its root'!r} ({leaf.dtype}, {leaf.layout}) cannot be indexed, so "
        "no example can be taken from it. Convert it to a dense tensor of a common dtype first."
    )


def _remedy(array: np.ndarray) -> str:
    kind, names = array.dtype.kind, array.dtype.names
    if names:
        return f"pass its fields, {{name: array[name] for name in {names}}}"
    if kind == "O":
        return "stack its items to an array of numbers; or, if they differ in size, use a dataset"
    if kind in "Mm":
        return 'pass numbers, array.astype("int64")'
    if kind in "fc":
        return f'pass array.astype("{"float64" if kind == "f" else "complex128"}")'
    if array.dtype.name.startswith(("bfloat16", "float8")):
        width = 8 * array.dtype.itemsize
        view = f"view(torch.{array.dtype.name})"
        return f'pass torch.from_numpy(array.view("uint{width}")).{view}'
    return "encode it as numbers first"


def _refusal(path: str, wrong: str, remedy: str) -> ValueError:
    return ValueError(f"The array at {path or 'its root'!r} {wrong}. To use it, {remedy}.")
