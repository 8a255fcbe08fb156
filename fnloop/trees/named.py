"""View pytrees by name, independent of how their leaves are stored.

A class that stores many named tensors in a few long ones has a method ``__tree_named__``, which
returns a `Named`. Paths, equality, tables and checkpoints use that. Classes of other libraries that
have named children, but are no pytrees, are seen so too: mappings and dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optree

from fnloop._torch import pytree


class Named:
    """A pytree node with named children, in place of an object that stores them otherwise.

    Args:
        names: Names of the children.
        values: The children.
        restore: Makes the original object from a dict of children by name.
        kind: The class of the original object, if two objects of equal names may differ in it.
    """

    __slots__ = ("kind", "names", "restore", "values")

    def __init__(
        self,
        names: tuple[Any, ...],
        values: Iterable[Any],
        restore: Callable[[Any], Any],
        kind: type | None = None,
    ) -> None:
        self.names, self.values, self.restore, self.kind = names, tuple(values), restore, kind

    def __getitem__(self, name: str) -> Any:
        return self.values[self.names.index(name)]


class _Static:
    """The metadata of a `Named`. Equality ignores `restore`."""

    __slots__ = ("kind", "names", "restore")

    def __init__(self, names: tuple[Any, ...], restore: Any, kind: type | None) -> None:
        self.names, self.restore, self.kind = names, restore, kind

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static):
            return False
        return self.names == other.names and self.kind is other.kind

    def __hash__(self) -> int:
        return hash(self.names)


pytree.register_node(
    Named,
    children=lambda node: node.values,
    static=lambda node: _Static(node.names, node.restore, node.kind),
    build=lambda static, values: Named(static.names, values, static.restore, static.kind),
    entries=lambda node: node.names,
)


def by_name(tree: Any) -> Any:
    """Replace by its `Named` every node that has ``__tree_named__``, mapping and dataclass.

    >>> from collections import UserDict
    >>> by_name({"a": UserDict(x=1)})["a"].names
    ('x',)
    """
    if not _has_names(tree):
        return tree
    return optree.tree_map(
        lambda node: _named(node) if _is_named(node) else node, tree, is_leaf=_is_named
    )


def restored(tree: Any) -> Any:
    """The inverse of `by_name`.

    Raises:
        TypeError: The class of a mapping cannot be made from a dict.
    """

    def back(node: Any) -> Any:
        if not isinstance(node, Named):
            return node
        return node.restore(dict(zip(node.names, map(restored, node.values), strict=True)))

    return optree.tree_map(back, tree, is_leaf=lambda node: isinstance(node, Named))


def _named(node: Any) -> Named:
    if hasattr(type(node), "__tree_named__"):
        return node.__tree_named__()
    kind = type(node)
    if isinstance(node, Mapping):
        names, make = tuple(node), _mapping
    else:
        names, make = tuple([field.name for field in dataclasses.fields(node)]), _dataclass
    values = [node[name] if make is _mapping else getattr(node, name) for name in names]
    return Named(names, map(by_name, values), functools.partial(make, kind), kind)


def _mapping(kind: type, values: dict[Any, Any]) -> Any:
    try:
        return kind(values)
    except Exception as error:
        raise TypeError(
            f"A {kind.__name__} cannot be made from a dict of its values, which is needed to cut "
            f"or to compile a batch ({type(error).__name__}: {error}). Make the batch a dict: "
            "dict(batch)."
        ) from error


def _dataclass(kind: type, values: dict[str, Any]) -> Any:
    new = object.__new__(kind)  # bypass __init__, which may check or convert
    for name, value in values.items():
        object.__setattr__(new, name, value)
    return new


def _is_named(node: Any) -> bool:
    kind = type(node)
    if hasattr(kind, "__tree_named__"):
        return True
    if kind is dict or not (issubclass(kind, Mapping) or hasattr(kind, "__dataclass_fields__")):
        return False
    return optree.tree_is_leaf(node)


def _has_names(tree: Any) -> bool:
    found = False

    def look(node: Any) -> bool:
        nonlocal found
        found = found or _is_named(node)
        return found

    optree.tree_leaves(tree, is_leaf=look)
    return found
