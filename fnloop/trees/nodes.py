"""``@fl.tree``: frozen dataclasses that are pytrees in optree and in torch."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import optree
import torch

from fnloop._torch import pytree
from fnloop.names.keywords import explained

T = TypeVar("T")

_STATIC_TYPES = (
    int,
    str,
    bytes,
    type(None),
    type,
    enum.Enum,
    pathlib.PurePath,
    torch.dtype,
    torch.device,
    torch.nn.Module,
    types.FunctionType,
)


@typing.overload
def static() -> Any: ...
@typing.overload
def static(default: T) -> T: ...
def static(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of an `fl.tree` class as part of the structure, not a child.

    Args:
        default: The field's default value, if any.

    >>> @tree
    ... class Power:
    ...     scale: float
    ...     exponent: Any = static(2)
    >>> tree_leaves(Power(3.0))
    [3.0]
    """
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def tree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that is a pytree in optree and in torch.

    A field is static if its annotation is ``int``, ``bool``, ``str``, a callable, ``type``, an
    enum, a path, a dtype or a device, or a tuple or union of those; or if it is declared with
    `fl.static`. All other fields are children: tensors, floats, other trees, and containers of
    them.

    ``==`` is `fl.tree_equal` (bitwise).

    Raises:
        TypeError: A field has the name of what a base class of fnloop's needs for itself.

    >>> @tree
    ... class Line:
    ...     slope: torch.Tensor
    ...     intercept: float = 0.0
    ...     name: str = "line"
    ...     def __call__(self, x):
    ...         return self.slope * x + self.intercept
    >>> line = Line(torch.tensor([2.0]))
    >>> line
    Line(slope=f32[1])
    >>> tree_map(lambda leaf: leaf + 1, line)(torch.tensor([1.0]))
    tensor([4.])
    """
    own_init = "__init__" in vars(cls)
    _refuse_taken(cls)
    dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    hints = _hints(cls)
    if getattr(cls, "explains_keywords", False):
        cls.__init__ = explained(cls.__init__, None if own_init else hints)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    child_names = tuple(f.name for f in fields if not _is_static(f, hints[f.name]))
    static_names = tuple(f.name for f in fields if f.name not in child_names)

    def children(obj: Any) -> tuple[Any, ...]:
        return tuple([getattr(obj, name) for name in child_names])

    def metadata(obj: Any) -> tuple[Any, ...]:
        return tuple([getattr(obj, name) for name in static_names])

    def build(static_values: tuple[Any, ...], values: Iterable[Any]) -> Any:
        # Bypass __init__: torch.func puts placeholders in place of leaves, which the checks of
        # __post_init__ must not see.
        obj = object.__new__(cls)
        own = obj.__dict__
        if static_names:
            own.update(zip(static_names, static_values, strict=True))
        # Called often; `strict=True` takes time.
        own.update(zip(child_names, values))  # noqa: B905
        return obj

    pytree.register(cls, child_names, children, metadata, build)
    namespace: Any = cls
    namespace.__tree_children__ = child_names
    for name, method in (("__eq__", _eq), ("__hash__", _hash), ("__repr__", _repr)):
        # Keep a method that the class, or a base that is not a tree, defines itself.
        if getattr(cls, name) is getattr(object, name) or (
            name == "__hash__" and cls.__hash__ is None
        ):
            setattr(cls, name, method)
    return cls


def is_tree(value: Any) -> bool:
    """Whether `value` is an instance of a class made by `fl.tree`."""
    return hasattr(type(value), "__tree_children__")


def fields_of(cls: type) -> list[str]:
    """The names that a class itself annotates as fields."""
    annotations = inspect.get_annotations(cls).items()
    return [name for name, annotation in annotations if "ClassVar" not in str(annotation)]


def _refuse_taken(cls: type) -> None:
    """Refuse fields that would hide a method or constant of a base class of fnloop's."""
    for name in fields_of(cls):
        for base in cls.__mro__[1:]:
            own = base.__module__.partition(".")[0] == __name__.partition(".")[0]
            if own and name in vars(base) and name not in fields_of(base):
                raise TypeError(
                    f"{cls.__name__} has a field {name!r}, and {base.__name__} needs that name for "
                    f"something else ({base.__name__}.{name}). Give the field another name, such "
                    f"as {name}_."
                )


def not_decorated(cls: type, what: str) -> TypeError:
    """The error for a class that was written without `fl.tree`.

    Args:
        cls: The class.
        what: What its instances are, for the message.
    """
    fields = fields_of(cls)
    own = "" if fields or "__init__" not in vars(cls) else _NO_INIT
    cannot = f", so it cannot have fields such as {fields[0]}" if fields else ""
    return TypeError(
        f"The {what} class {cls.__name__} is no tree{cannot}. Write @fl.tree on the line above "
        f"class {cls.__name__}.{own}"
    )


_NO_INIT = (
    " Declare its settings as annotated fields in place of __init__; what is checked or computed "
    "from them goes into __post_init__."
)


def rebuilt(obj: T, /, **changes: Any) -> T:
    """A copy of a tree with other fields, made of its fields alone.

    ``dataclasses.replace`` without the checks, which `obj` has passed, and which placeholders of
    transforms would not pass.
    """
    kept: Any = obj
    new: Any = object.__new__(type(kept))
    new.__dict__.update({f.name: getattr(kept, f.name) for f in dataclasses.fields(kept)})
    new.__dict__.update(changes)
    return new


def tree_map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `f` to every leaf of `tree`, with the corresponding leaves of `rest`.

    ``None`` is an empty node, not a leaf.

    >>> tree_map(lambda a, b: a + b, {"x": 1, "y": (2, None)}, {"x": 10, "y": (20, None)})
    {'x': 11, 'y': (22, None)}
    """
    return optree.tree_map(f, tree, *rest)


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves of `tree`, left to right; dicts in the sorted order of their keys.

    >>> tree_leaves({"b": 1, "a": (2, None, [3])})
    [2, 3, 1]
    """
    return optree.tree_leaves(tree)


def _hints(cls: type) -> dict[str, Any]:
    """The type of each field; one that cannot be resolved (a local name) stays a string."""
    resolved: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        module = sys.modules.get(base.__module__)
        scope = dict(vars(module)) if module else {}
        for name, annotation in inspect.get_annotations(base).items():
            if isinstance(annotation, str):
                with contextlib.suppress(NameError):
                    annotation = eval(annotation, scope, dict(vars(base)))  # as typing does
            resolved[name] = annotation
    return resolved


def _is_static(field: dataclasses.Field[Any], annotation: Any) -> bool:
    return bool(field.metadata.get("static")) or _is_static_type(annotation)


def _is_static_type(annotation: Any) -> bool:
    if isinstance(annotation, str):  # unresolved
        return annotation.startswith(("int", "bool", "str", "Callable"))
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _is_static_type(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, tuple):
        arguments: Iterable[Any] = typing.get_args(annotation)
        return all(_is_static_type(a) for a in arguments if a is not Ellipsis)
    if annotation is None or annotation is Callable or annotation is typing.Callable:
        return True
    if origin in (typing.Literal, type, Callable):
        return True
    return isinstance(annotation, type) and issubclass(annotation, _STATIC_TYPES)


def _eq(self: Any, other: Any) -> bool:
    from fnloop.trees.equal import tree_equal

    return tree_equal(self, other)


def _hash(self: Any) -> int:
    leaves, structure = optree.tree_flatten(self)
    shapes = tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in leaves
    )
    return hash((structure, shapes))


def _repr(self: Any) -> str:
    from fnloop.trees.show import short

    return short(self)


_repr.of_tree = True  # pyright: ignore[reportFunctionMemberAccess]
