"""JSON values as text, and back: strictly, and within bounds of size and depth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

VALUES = 2**20
NAMES = 2**18
"""Values in a text, and names among them, at most: a made-up one costs little time and memory."""
_DEEPEST = 64
_BITS = 2048
_INT = re.compile(r"-?[1-9][0-9]{0,639}")


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """`value` as it is when it was written and read again.

    Args:
        value: Numbers, text, None, and mappings and sequences of them.
        other: What to make of anything else.

    Raises:
        TypeError: There is something else, and no `other`.
        ValueError: It is nested too deeply, or an int has more than 2048 bits.
    """
    return _encode(value, other, _DEEPEST)


def to_text(value: Any) -> str:
    """The JSON text of `value`, in ASCII.

    What not every reader of JSON takes is written as ``{"$float": "nan"}`` (nan and infinities) or
    ``{"$int": "18446744073709551616"}`` (beyond 64 bits). A mapping of one entry whose name begins
    with ``$`` gets one more ``$``.

    >>> to_text({"a": [1.5, float("inf")]}).replace("\\n", "")
    '{ "a": [  1.5,  {   "$float": "inf"  } ]}'
    """
    return json.dumps(_marked(encode(value)), indent=1)


def from_text(text: str) -> Any:
    """The inverse of `to_text`.

    Raises:
        ValueError: It is no JSON, or what `to_text` never writes: a name that comes twice, a number
            beyond its type, or more than 1,048,576 values or 262,144 names.
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
    """Of what there are more than `from_text` reads, or None."""
    # Each value but the first follows one of these; some are in strings, which is no matter.
    if sum(map(text.count, "[{,")) >= VALUES:
        return f"more than {VALUES} values"
    if text.count(":") > NAMES:
        return f"more than {NAMES} names"
    return None


def is_shallow(value: Any) -> bool:
    """Whether JSON values are nested no deeper than what `encode` lets pass."""
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


def _encode(value: Any, other: Callable[[Any], Any] | None, depth: int) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if value.bit_length() > _BITS:
            raise ValueError(f"An int has {value.bit_length()} bits, and at most {_BITS} are kept.")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (Mapping, list, tuple)):
        if not depth:
            raise ValueError(f"Values are nested more than {_DEEPEST} levels deep.")
        if isinstance(value, Mapping):
            return {str(key): _encode(entry, other, depth - 1) for key, entry in value.items()}
        return [_encode(entry, other, depth - 1) for entry in value]
    if other is not None:
        return other(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} is no JSON value.")


def _marked(value: Any) -> Any:
    if type(value) is int and not _fits(value):
        return {"$int": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
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
        raise ValueError("a name that comes twice")
    return entries


def _unmarked(name: str, value: Any) -> Any:
    if name.startswith("$$"):
        return {name[1:]: value}
    if name == "$float" and value in ("nan", "inf", "-inf"):
        return float(value)
    if name == "$int" and isinstance(value, str) and _INT.fullmatch(value):
        number = int(value)
        if not _fits(number):
            return number
    raise ValueError(f"a special value {name[:20]!r} that is none")


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


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63
