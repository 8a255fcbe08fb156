"""Convert values to JSON and back.

There are three conversions:

- Readable, one way: `plain`; `jsonable` also turns nan and infinities into strings.
- Exact, both ways: `encode` and `decode`. A type that JSON lacks is an object with one key that
  starts with "$": ``{"$tuple": [...]}``. A dict with a key that is not a string, or that starts
  with "$", is a "$dict" of pairs. There is no pickle, and no class is looked up by name.
- As text, with strict checks and limits on size and depth: `to_text` and `from_text`, for numbers,
  strings, None, and mappings and sequences of them. `as_json` converts these to dicts and lists.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

VALUES = 2**20
NAMES = 2**18
"""Limits on the values and names in a text, so that a malicious one costs little to reject."""
_DEEPEST = 64
_BITS = 2048
_INT = re.compile(r"-?[1-9][0-9]{0,639}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith("torch.q")
}
_FLOATS = {str(value): value for value in (math.nan, math.inf, -math.inf)}


# Readable


def plain(value: Any) -> Any:
    """Convert to nested dicts and lists of numbers, strings, bools and None.

    Tensors and arrays of one element become numbers, larger ones a string with dtype and shape.
    Functions and classes become their name, callable dataclasses (schedules) their ``str``. Sets
    become sorted lists.

    >>> import torch
    >>> plain({"lr": torch.tensor(0.5), "dtype": torch.float32, "w": torch.ones(2, 3), 1: (2,)})
    {'lr': 0.5, 'dtype': 'torch.float32', 'w': 'torch.float32[2, 3]', '1': [2]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return _builtin(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):  # the order of a set of strings varies by process
        return sorted((plain(entry) for entry in value), key=repr)
    if isinstance(value, list | tuple):
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
    """Like `plain`, but nan and infinities become strings, which ``float`` can parse.

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
    """Convert subclasses (numpy.float64, IntEnum) to builtin types: some trackers refuse them."""
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


# Exact


class _Refused(ValueError):
    """A `ValueError` whose message already names the path."""


def encode(value: Any, path: str = "state") -> Any:
    """Convert to a JSON value from which `decode` restores `value` bit for bit.

    Args:
        value: None, bool, int, float, str, bytes, tensors on the CPU, numpy arrays and numbers, and
            dicts, lists, tuples and sets of these. Subclasses are not accepted.
        path: Name of the value in messages.

    Raises:
        ValueError: The value contains something else; the message names its path.

    >>> encode({"position": 3, "order": (2, 0), 1: b"a"})
    {'$dict': [['position', 3], ['order', {'$tuple': [2, 0]}], [1, {'$bytes': 'YQ=='}]]}
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return _marked_float(value)
    if kind is list:
        return _all(value, path)
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(part, f"{path}[{key!r}]") for key, part in value.items()}
        return {"$dict": _pairs(value, path)}
    if kind is OrderedDict:
        return {"$ordered": _pairs(value, path)}
    if kind in (tuple, set, frozenset):
        return {f"${kind.__name__}": _all(value, path)}
    if kind in (bytes, bytearray):
        return {f"${kind.__name__}": _of_bytes(value)}
    if kind is Tensor:
        return {"$tensor": _of_tensor(value, path)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"$number": _of_array(np.asarray(value))}
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return {"$array": _of_array(value)}
    raise ValueError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}; a checkpoint can hold numbers, text, "
        "bytes, tensors, arrays, and dicts, lists, tuples and sets of them (store the state of a "
        "random generator)."
    )


def decode(value: Any, path: str = "state") -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: The JSON was not made by `encode`; the message names the path.

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
        raise _Refused(f"{path} is not a valid {tag[1:]}: {error!r}.") from error


def _all(values: Any, path: str) -> list[Any]:
    return [encode(part, f"{path}[{i}]") for i, part in enumerate(values)]


def _pairs(values: Any, path: str) -> list[Any]:
    return [
        [encode(key, f"the key {key!r} of {path}"), encode(part, f"{path}[{key!r}]")]
        for key, part in values.items()
    ]


def _of_tensor(tensor: Tensor, path: str) -> dict[str, Any]:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or name not in _DTYPES:
        raise ValueError(
            f"{path} is a tensor of {tensor.dtype} on {tensor.device} ({tensor.layout}); a "
            "checkpoint can only hold dense tensors on the CPU in JSON."
        )
    data = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return {"dtype": name, "shape": list(tensor.shape), "data": _of_bytes(data.numpy().tobytes())}


def _of_array(array: Any) -> dict[str, Any]:
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "data": _of_bytes(array.tobytes()),
    }


def _decode_tensor(value: Any, path: str) -> Tensor:
    shape, data = _shape(value), _bytes(value["data"], path)
    dtype = _DTYPES[value["dtype"]]
    _check_size(math.prod(shape) * dtype.itemsize, data, path)
    if not data:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


def _decode_array(value: Any, path: str) -> Any:
    shape, data, name = _shape(value), _bytes(value["data"], path), value["dtype"]
    if not isinstance(name, str) or len(name) > 5 or name[1:2] not in tuple("biufc"):
        raise _Refused(f"{path} has the dtype {name!r}; only arrays of numbers are supported.")
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


def _of_bytes(data: bytes | bytearray) -> str:
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


# As text


def as_json(value: Any) -> Any:
    """Convert `value` to what it becomes when written as JSON and read back.

    Args:
        value: Numbers, strings, None, and mappings and sequences of them.

    Raises:
        TypeError: It contains something else.
        ValueError: It is nested more than 64 levels deep, or an int has more than 2048 bits.

    >>> as_json({1: (2, None)})
    {'1': [2, None]}
    """
    return _as_json(value, _DEEPEST)


def to_text(value: Any) -> str:
    """The JSON text of `value`, in ASCII.

    Values that not every JSON parser reads get a tag: ``{"$float": "nan"}`` for nan and infinities,
    ``{"$int": "18446744073709551616"}`` for ints beyond 64 bits. In a mapping of one entry, a name
    that starts with ``$`` is escaped by one more ``$``.

    Raises:
        TypeError, ValueError: As for `as_json`.

    >>> to_text({"a": [1.5, float("inf")]}).replace("\\n", "")
    '{ "a": [  1.5,  {   "$float": "inf"  } ]}'
    """
    return json.dumps(_marked(as_json(value)), indent=1)


def from_text(text: str) -> Any:
    """The inverse of `to_text`.

    Raises:
        ValueError: It is not JSON, or `to_text` cannot have written it: a duplicate name, a number
            out of range, or more than 1,048,576 values or 262,144 names.
    """
    if fault := too_many_in(text):
        raise ValueError(f"it has {fault}")
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
    except (TypeError, RecursionError, MemoryError) as error:
        raise ValueError(type(error).__name__) from error


def too_many_in(text: str) -> str | None:
    """Which limit of `from_text` the text exceeds, as text; None if it exceeds none."""
    # Each value but the first follows one of these characters. Those in strings are counted too.
    if sum(map(text.count, "[{,")) >= VALUES:
        return f"more than {VALUES} values"
    if text.count(":") > NAMES:
        return f"more than {NAMES} names"
    return None


def is_shallow(value: Any) -> bool:
    """Whether a JSON value is nested no deeper than `as_json` accepts."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return True
    return False


def _as_json(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if value.bit_length() > _BITS:
            raise ValueError(f"An int has {value.bit_length()} bits; at most {_BITS} are allowed.")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (Mapping, list, tuple)):
        if not depth:
            raise ValueError(f"Values are nested more than {_DEEPEST} levels deep.")
        if isinstance(value, Mapping):
            return {str(key): _as_json(entry, depth - 1) for key, entry in value.items()}
        return [_as_json(entry, depth - 1) for entry in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} is not a JSON value.")


def _marked(value: Any) -> Any:
    if type(value) is int and not _fits(value):
        return {"$int": str(value)}
    if isinstance(value, float):
        return _marked_float(value)
    if isinstance(value, list):
        return [_marked(entry) for entry in value]
    if isinstance(value, dict):
        mark = "$" if len(value) == 1 and next(iter(value)).startswith("$") else ""
        return {mark + name: _marked(entry) for name, entry in value.items()}
    return value


def _object(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0].startswith("$"):
        return _unmarked(*pairs[0])
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a duplicate name")
    return entries


def _unmarked(name: str, value: Any) -> Any:
    if name.startswith("$$"):
        return {name[1:]: value}
    if name == "$float" and isinstance(value, str) and value in _FLOATS:
        return _FLOATS[value]
    if name == "$int" and isinstance(value, str) and _INT.fullmatch(value):
        number = int(value)
        if not _fits(number):
            return number
    raise ValueError(f"an invalid special value {name[:20]!r}")


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a float that is out of range")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**64
    if not _fits(value) or text == "-0":
        raise ValueError("an int that is out of range")
    return value


def _marked_float(value: float) -> Any:
    return value if math.isfinite(value) else {"$float": str(value)}


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63
