"""Configurations as plain values, which every tracker can store."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from torch import Tensor

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plain(value: Any) -> Any:
    """`value` as nested dicts and lists of numbers, strings, bools and None.

    Tensors and arrays of one element become numbers, larger ones their dtype and shape; functions
    and classes their name; data that can be called (a schedule) its text.

    >>> import torch
    >>> plain({"lr": torch.tensor(0.5), "dtype": torch.float32, "w": torch.ones(2, 3), 1: (2,)})
    {'lr': 0.5, 'dtype': 'torch.float32', 'w': 'torch.float32[2, 3]', '1': [2]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return _builtin(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        if math.prod(value.shape) == 1:
            return value.item()
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not callable(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"{value.__module__}.{name}"
    return _ADDRESS.sub("", str(value))


def jsonable(value: Any) -> Any:
    """`plain`, for JSON: nan and infinities become strings, which `float` reads.

    >>> jsonable({"loss": math.nan, "best": -math.inf, "lr": 0.1})
    {'loss': 'nan', 'best': '-inf', 'lr': 0.1}
    """
    value = plain(value)
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [jsonable(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _builtin(value: Any) -> Any:
    """Without subclasses (numpy.float64, IntEnum), which some trackers refuse."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
