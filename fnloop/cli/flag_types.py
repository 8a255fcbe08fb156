"""Values of flags whose types are made of numbers, words and text, in fnloop's own YAML dialect.

jsonargparse reads text a second time, in a dialect of its own: a text "null" would become None, and
"12:30" the number 750. Other types are left to it.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fnloop.cli.class_types import alternatives, with_default
from fnloop.cli.yaml_dialect import load_flag

UNFIT: Any = object()
_SCALARS = (str, int, float, bool, type(None))


def types_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters; none if an annotation cannot be resolved.

    That of a parameter with the default None has None in it.
    """
    try:
        found = get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}
    flags = inspect.signature(function).parameters
    return {
        name: with_default(kind, flags[name].default)
        for name, kind in found.items()
        if name != "return"
    }


def kind_text(kind: Any) -> str:
    """A type, or an annotation, in the words of a message.

    >>> kind_text(list[re.Pattern | None]), kind_text(Literal["a.b"]), kind_text("nn.Module")
    ('list[Pattern | None]', "Literal['a.b']", 'nn.Module')
    """
    if isinstance(kind, str):
        return kind
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(kind.__members__)}"
    if any(inspect.isclass(each) and issubclass(each, enum.Enum) for each in alternatives(kind)):
        return " | ".join(map(kind_text, get_args(kind)))
    names = r"'[^']*'|\b(?:\w+\.)+(?=\w)"
    shorter = re.sub(
        names, lambda m: m[0] if m[0][0] == "'" else "", inspect.formatannotation(kind)
    )
    return shorter.removeprefix("typing.")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as it is, without any conversion.

    >>> fits("null", str | None), fits(1, float), fits([1, "a"], list[int | str])
    (True, False, True)
    """
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind in _SCALARS:
        return type(value) is (type(None) if kind is None else kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin is list and isinstance(value, list):
        return all(fits(item, each) for item in value for each in arguments)
    if origin is dict and isinstance(value, dict):
        of_key, of_value = arguments or (Any, Any)
        return all(fits(k, of_key) and fits(v, of_value) for k, v in value.items())
    return False


def takes_none(kind: Any) -> bool:
    """Whether None is of a type, as far as is known.

    >>> takes_none(int | None), takes_none(object), takes_none(list[int]), takes_none(Literal["a"])
    (True, True, False, False)
    """
    for each in alternatives(kind):
        made = get_origin(each) or each
        known = inspect.isclass(made) or made is Literal
        if made in (Any, type(None), object) or not known or None in get_args(each):
            return True
    return False


def may_be(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, where a whole number is one with a fraction too."""
    return fits(value, kind) or (type(value) is int and fits(float(value), kind))


def is_simple(kind: Any) -> bool:
    """Whether a type is one of the scalars, a literal, or a union of these."""
    if get_origin(kind) in (Union, types.UnionType):
        return all(map(is_simple, get_args(kind)))
    return kind in _SCALARS or get_origin(kind) is Literal


def read(text: str, kind: Any) -> Any:
    """The value that a text on the command line has for a simple type; `UNFIT` if it has none.

    >>> read("010", int), read("3e5", str), read("3e5", float | None), read("12:30", int | str)
    (10, '3e5', 300000.0, '12:30')
    """
    value = load_flag(text)
    found = [] if isinstance(value, str) else [value]
    if type(value) is int:
        found.append(float(value))
    return next((each for each in (*found, text) if fits(each, kind)), UNFIT)
