"""The state of a data loader as plain JSON, and back: no pickle, no class by name.

What JSON does not know is an object with one key that begins with "$": ``{"$tuple": [...]}``. A
dict whose keys are not all strings, or one of whose keys begins with "$", is a "$dict" of pairs.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith("torch.q")
}
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class _Refused(ValueError):
    """A message that names the place already."""


def encode(value: Any, path: str = "state") -> Any:
    """A value that is JSON, from which `decode` makes `value` again, to the bit.

    Args:
        value: None, bool, int, float, str, bytes, tensors on the CPU, numpy arrays and numbers, and
            dicts, lists, tuples and sets of these; no subclasses of them.
        path: What the value is called in messages.

    Raises:
        ValueError: For anything else; the message names the place.

    >>> encode({"position": 3, "order": (2, 0), 1: b"a"})
    {'$dict': [['position', 3], ['order', {'$tuple': [2, 0]}], [1, {'$bytes': 'YQ=='}]]}
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return _encode_all(value, path)
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(part, f"{path}[{key!r}]") for key, part in value.items()}
        return {"$dict": _encode_pairs(value, path)}
    if kind is OrderedDict:
        return {"$ordered": _encode_pairs(value, path)}
    if kind in (tuple, set, frozenset):
        return {f"${kind.__name__}": _encode_all(value, path)}
    if kind in (bytes, bytearray):
        return {f"${kind.__name__}": _text(value)}
    if kind is Tensor:
        return {"$tensor": _encode_tensor(value, path)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"$number": _encode_array(np.asarray(value))}
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return {"$array": _encode_array(value)}
    raise ValueError(
        f"The data loader cannot be resumed exactly: {path} is a {kind.__module__}."
        f"{kind.__qualname__}, and a checkpoint keeps numbers, text, bytes, tensors, arrays, and "
        "dicts, lists, tuples and sets of them. Have state_dict() give it in these terms (of a "
        "random generator, its state)."
    )


def decode(value: Any, path: str = "state") -> Any:
    """What `encode` was given.

    Raises:
        ValueError: The JSON is not as `encode` writes it; the message names the place.

    >>> decode({"$tuple": [1, {"$float": "inf"}]})
    (1, inf)
    """
    if isinstance(value, list):
        return [decode(part, f"{path}[{i}]") for i, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if len(value) != 1 or not tag.startswith("$"):
        return {key: decode(part, f"{path}[{key!r}]") for key, part in value.items()}
    read = _DECODERS.get(tag)
    if read is None:
        raise _Refused(f"{path} has the tag {tag!r}; known are {', '.join(_DECODERS)}.")
    try:
        return read(value[tag], path)
    except _Refused:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise _Refused(f"{path} is no {tag[1:]} as it is written: {error!r}.") from error


def _encode_all(values: Any, path: str) -> list[Any]:
    return [encode(part, f"{path}[{i}]") for i, part in enumerate(values)]


def _encode_pairs(values: Any, path: str) -> list[Any]:
    return [
        [encode(key, f"the key {key!r} of {path}"), encode(part, f"{path}[{key!r}]")]
        for key, part in values.items()
    ]


def _encode_tensor(tensor: Tensor, path: str) -> dict[str, Any]:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or name not in _DTYPES:
        raise ValueError(
            f"The data loader cannot be resumed exactly: {path} is a tensor of {tensor.dtype} on "
            f"{tensor.device} ({tensor.layout}); a checkpoint keeps dense ones on the CPU. Have "
            "state_dict() give such a one."
        )
    data = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return {"dtype": name, "shape": list(tensor.shape), "data": _text(data.numpy().tobytes())}


def _encode_array(array: Any) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": _text(array.tobytes())}


def _decode_tensor(value: Any, path: str) -> Tensor:
    shape, data = _shape(value), _bytes(value["data"], path)
    dtype = _DTYPES[value["dtype"]]
    _check_size(math.prod(shape) * dtype.itemsize, data, path)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


def _decode_array(value: Any, path: str) -> Any:
    shape, data, name = _shape(value), _bytes(value["data"], path), value["dtype"]
    if not isinstance(name, str) or len(name) > 5 or name[1:2] not in tuple("biufc"):
        raise _Refused(f"{path} has the dtype {name!r}; arrays of numbers are kept.")
    dtype = np.dtype(name)
    _check_size(math.prod(shape) * dtype.itemsize, data, path)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _decode_number(value: Any, path: str) -> Any:
    return _decode_array(value, path)[()]


def _decode_float(value: Any, path: str) -> float:
    return _FLOATS[value]


def _decode_pairs(make: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    def read(value: Any, path: str) -> Any:
        pairs = [(decode(key, path), part) for key, part in _list(value)]
        return make([(key, decode(part, f"{path}[{key!r}]")) for key, part in pairs])

    return read


def _decode_all(make: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    return lambda value, path: make(decode(_list(value), path))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list was expected, not {type(value).__name__}")
    return value


def _shape(value: Any) -> list[int]:
    shape = _list(value["shape"])
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 64:
        raise TypeError(f"a shape was expected, not {shape}")
    return shape


def _check_size(expected: int, data: bytes, path: str) -> None:
    if expected != len(data):
        raise _Refused(f"{path} has {len(data)} bytes; its dtype and shape need {expected}.")


def _text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(value: Any, path: str) -> bytes:
    return base64.b64decode(value, validate=True)


_DECODERS: dict[str, Callable[[Any, str], Any]] = {
    "$float": _decode_float,
    "$dict": _decode_pairs(dict),
    "$ordered": _decode_pairs(OrderedDict),
    "$tuple": _decode_all(tuple),
    "$set": _decode_all(set),
    "$frozenset": _decode_all(frozenset),
    "$bytes": _bytes,
    "$bytearray": lambda value, path: bytearray(_bytes(value, path)),
    "$tensor": _decode_tensor,
    "$array": _decode_array,
    "$number": _decode_number,
}
