"""Convert a torch optimizer's state to tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Packed: TypeAlias = dict[str, dict[str, Any]]

# The kind of an entry is the sub-dict that it is in; a number's type is its tensor's dtype.
_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def pack(state: Mapping[Any, Any], where: str) -> Packed:
    """Convert `state` to tensors: tensors, numbers, None, and dicts and lists of them.

    Args:
        state: The state of a torch optimizer.
        where: Its location, for messages.

    Raises:
        TypeError: It contains something else.

    >>> packed = pack({"step": 3, "mean": torch.zeros(2), "best": None}, "state")
    >>> packed["numbers"]
    {'step': tensor(3)}
    >>> unpack(packed)
    {'mean': tensor([0., 0.]), 'step': 3, 'best': None}
    """
    packed: Packed = {"tensors": {}, "numbers": {}, "nones": {}, "dicts": {}, "lists": {}}
    for key, value in state.items():
        place = f"{where}[{key!r}]"
        if not isinstance(key, str):
            raise TypeError(f"from_torch: the keys of {where} must be strings; got {key!r}.")
        if isinstance(value, Tensor):
            packed["tensors"][key] = value.detach().clone()
        elif type(value) in _DTYPES:
            packed["numbers"][key] = torch.tensor(value, dtype=_DTYPES[type(value)], device="cpu")
        elif value is None:
            packed["nones"][key] = torch.empty(0, device="cpu")
        elif isinstance(value, Mapping):
            packed["dicts"][key] = pack(value, place)
        elif type(value) is list:
            packed["lists"][key] = pack({str(i): item for i, item in enumerate(value)}, place)
        else:
            raise TypeError(
                f"from_torch: {place} is {value!r} ({type(value).__name__}); only tensors, "
                "numbers, None, and dicts and lists of them are supported."
            )
    return packed


def unpack(packed: Packed) -> dict[str, Any]:
    """The inverse of `pack`; tensors are copied."""
    return {
        **{key: tensor.clone() for key, tensor in packed["tensors"].items()},
        **{key: tensor.item() for key, tensor in packed["numbers"].items()},
        **dict.fromkeys(packed["nones"]),
        **{key: unpack(inner) for key, inner in packed["dicts"].items()},
        **{key: _listed(unpack(inner)) for key, inner in packed["lists"].items()},
    }


def _listed(items: dict[str, Any]) -> list[Any]:
    return [items[str(i)] for i in range(len(items))]


def zeros(packed: Any) -> Any:
    """Zeros with the same structure."""
    if isinstance(packed, Tensor):
        return torch.zeros_like(packed)
    return {key: zeros(value) for key, value in packed.items()}


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """The locations where structure, shape or dtype differ."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        same = isinstance(a, Tensor) and isinstance(b, Tensor)
        return [] if same and (a.shape, a.dtype) == (b.shape, b.dtype) else [place]
    found: list[str] = []
    for key in dict.fromkeys((*a, *b)):
        inner = f"{place}.{key}" if place else str(key)
        found += differences(a[key], b[key], inner) if key in a and key in b else [inner]
    return found
