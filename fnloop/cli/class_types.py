"""Types whose values are made by a class or a function that is chosen by name."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

PLAIN = (str, int, float, bool, bytes, list, tuple, dict, set, type(None), object)
_WORDS = ("torch.device", "torch.dtype", "typing.Any")
_LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


def is_chosen(kind: Any) -> bool:
    """Whether values of this type, or their items, are made by a class or function of a name."""
    origin = get_origin(kind) or kind
    if origin is collections.abc.Callable:
        return True
    if get_args(kind):
        return any(map(is_chosen, get_args(kind)))
    if not inspect.isclass(kind) or issubclass(kind, (enum.Enum, pathlib.PurePath)):
        return False
    return kind not in PLAIN and path_of(kind) not in _WORDS


def path_of(kind: type) -> str:
    """The dotted path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def items_of(kind: Any) -> Any:
    """The type of the items of a list; `Any` if it is none."""
    return next((get_args(each)[0] for each in alternatives(kind) if _is(each, _LISTS)), Any)


def places_of(kind: Any) -> tuple[Any, ...]:
    """The types of the items of a tuple that has a fixed number of them; none if it has not.

    >>> places_of(tuple[int, str] | None), places_of(tuple[int, ...])
    ((<class 'int'>, <class 'str'>), ())
    """
    found = [get_args(each) for each in alternatives(kind) if get_origin(each) is tuple]
    return found[0] if found and ... not in found[0] else ()


def values_of(kind: Any) -> Any:
    """The type of the values of a mapping; `Any` if it is none."""
    return next((get_args(each)[1] for each in alternatives(kind) if _is(each, _MAPPINGS)), Any)


def bases_of(kind: Any) -> Iterator[type]:
    """The classes that a type names; of a callable, those that it gives.

    >>> list(bases_of(collections.abc.Callable[[int], collections.OrderedDict] | None))
    [<class 'collections.OrderedDict'>]
    """
    if get_origin(kind) is collections.abc.Callable:
        yield from bases_of(get_args(kind)[-1])
    elif get_args(kind):
        for each in get_args(kind):
            yield from bases_of(each)
    elif inspect.isclass(kind) and kind.__module__ != "builtins":
        yield kind


def taken_by(kind: Any) -> int:
    """How many arguments the recipe itself gives to what is chosen, as it is a callable."""
    found = [each for each in alternatives(kind) if get_origin(each) is collections.abc.Callable]
    given = get_args(found[0])[0] if found and get_args(found[0]) else ()
    return len(given) if isinstance(given, list) else 0


def record_of(kind: Any) -> type | None:
    """The dataclass, named tuple or typed dict that a type is; None if it is none.

    It is not chosen, as there is no other.
    """
    found = [each for each in alternatives(kind) if each is not type(None)]
    return found[0] if len(found) == 1 and _is_record(found[0]) else None


def _is_record(kind: Any) -> bool:
    if not inspect.isclass(kind):
        return False
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return dataclasses.is_dataclass(kind) or named or is_typeddict(kind)


def is_below(made: Any, bases: tuple[type, ...]) -> bool | None:
    """Whether a class is below one of others; None if nobody knows, as of a protocol."""
    try:
        return inspect.isclass(made) and issubclass(made, bases)
    except TypeError:
        return None


def arguments_of(made: Any) -> Mapping[str, Any] | None:
    """The arguments of a class or function, with their types; None if it takes any names."""
    if is_typeddict(made):
        return get_type_hints(made)
    try:
        known = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in known):
        return None
    try:
        is_tuple = inspect.isclass(made) and issubclass(made, tuple)
        own = inspect.isclass(made) and not is_tuple
        kinds = get_type_hints(made.__init__ if own else made)
    except (NameError, TypeError, AttributeError):
        kinds = {}
    return {each.name: with_default(kinds.get(each.name, Any), each.default) for each in known}


def with_default(kind: Any, default: Any) -> Any:
    """The type of a parameter: with None, if that is its default."""
    if default is not None or kind is Any:
        return kind
    try:
        return kind | None
    except TypeError:  # it is no type: x: callable = None
        return kind


def given_by(made: Any) -> Any:
    """A class, or the type that a function returns; None if it does not say."""
    if inspect.isclass(made):
        return made
    try:
        return get_type_hints(made).get("return") if inspect.isroutine(made) else None
    except (NameError, TypeError, AttributeError):
        return None


def alternatives(kind: Any) -> Iterator[Any]:
    """The types of a union, or the type itself."""
    if get_origin(kind) in (Union, types.UnionType):
        for each in get_args(kind):
            yield from alternatives(each)
    else:
        yield kind


def _is(kind: Any, origins: tuple[Any, ...]) -> bool:
    return get_origin(kind) in origins and bool(get_args(kind))
