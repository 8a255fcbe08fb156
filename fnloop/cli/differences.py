"""Where two objects that were built the same way differ."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.trees.equal import tree_equal
from fnloop.trees.show import short

_PLAIN = (bool, int, float, complex, str, bytes, type(None), PurePath)
_SHORT = 32


class Mismatch(NamedTuple):
    """A place where two objects differ.

    Attributes:
        place: Such as ``"model.0.out_features"``.
        one, other: What is there.
    """

    place: str
    one: Any
    other: Any

    @property
    def text(self) -> str:
        """Both, in short."""
        same = _told(self.one) == _told(self.other)
        return "other values" if same else f"{_told(self.one)}, {_told(self.other)}"


def differences(a: Any, b: Any, place: str = "") -> Iterator[Mismatch]:
    """Yield the places where two objects differ, as far as Python can look into them.

    Functions are compared by their code and by what they hold, tensors and arrays by content,
    modules and classes by identity, other objects by their attributes.

    Args:
        a, b: The objects.
        place: Of both.

    >>> def made(lr, width):
    ...     return {"sizes": [1, width], "loss": lambda x: lr * x}
    >>> [found.place for found in differences(made(0.1, 3), made(0.2, 4))]
    ['sizes[1]', 'loss.lr']
    >>> list(differences(made(0.1, 3), made(0.1, 3)))
    []
    """
    seen, waiting = dict[tuple[int, int], Any](), [(place, a, b)]
    while waiting:
        here, one, other = waiting.pop()
        if one is other or (id(one), id(other)) in seen:
            continue
        seen[id(one), id(other)] = one, other  # kept, so that no other gets their id
        if type(one) is not type(other):
            yield Mismatch(here, one, other)
        elif isinstance(one, _PLAIN):
            if one != other and not (one != one and other != other):
                yield Mismatch(here, one, other)
        elif isinstance(one, (type, types.ModuleType, types.BuiltinFunctionType)):
            yield Mismatch(here, one, other)
        elif isinstance(one, Tensor) or _is_array(one):
            yield from _of_arrays(here, one, other)
        else:
            left, right = _parts(one), _parts(other)
            if left.keys() != right.keys():
                yield Mismatch(here, one, other)
            pairs = [(here + name, left[name], right[name]) for name in left if name in right]
            waiting += [(at.removeprefix("."), x, y) for at, x, y in reversed(pairs)]


def _of_arrays(place: str, a: Any, b: Any) -> Iterator[Mismatch]:
    if a.shape != b.shape or a.dtype != b.dtype:
        yield Mismatch(f"{place} (its shape)", a, b)
    elif not (tree_equal(a, b) if isinstance(a, Tensor) else a.tobytes() == b.tobytes()):
        yield Mismatch(place, a, b)


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes")


def _parts(value: Any) -> dict[str, Any]:
    """What an object consists of, by what is added to its place."""
    if isinstance(value, Mapping):
        return {f"[{key!r}]" if "." in str(key) else f".{key}": item for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"[{i}]": item for i, item in enumerate(value)}
    if isinstance(value, (set, frozenset)):
        return {f".{item!r}": None for item in value}
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return {
            f".{value.__code__.co_code.hex()}": None,
            ".constants": [c for c in value.__code__.co_consts if isinstance(c, _PLAIN)],
            ".defaults": [value.__defaults__, value.__kwdefaults__],
            **{f".{name}": _content(cell) for name, cell in cells},
        }
    if isinstance(value, types.MethodType):
        return {".__self__": value.__self__, ".__func__": value.__func__}
    if isinstance(value, functools.partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    own = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                own[name] = getattr(value, name)
    return {f".{name}": item for name, item in own.items()}


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _told(value: Any) -> str:
    text = repr(value) if isinstance(value, _PLAIN) else short(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
