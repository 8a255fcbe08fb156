"""View pytrees by name, independent of how their leaves are stored.

A class that stores many named tensors in a few long ones has a method ``__tree_named__``, which
returns a `Named`. Paths, equality, tables and checkpoints use that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import optree

from fnloop._torch import pytree


class Named:
    """A pytree node with named children, in place of an object that stores them otherwise.

    Args:
        names: Names of the children.
        values: The children.
        restore: Makes the original object from a dict of children by name.
    """

    __slots__ = ("names", "restore", "values")

    def __init__(
        self, names: tuple[str, ...], values: Iterable[Any], restore: Callable[[Any], Any]
    ) -> None:
        self.names, self.values, self.restore = names, tuple(values), restore

    def __getitem__(self, name: str) -> Any:
        return self.values[self.names.index(name)]


class _Static:
    """The metadata of a `Named`. Equality ignores `restore`."""

    __slots__ = ("names", "restore")

    def __init__(self, names: tuple[str, ...], restore: Any) -> None:
        self.names, self.restore = names, restore

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)


pytree.register_node(
    Named,
    children=lambda node: node.values,
    static=lambda node: _Static(node.names, node.restore),
    build=lambda static, values: Named(static.names, values, static.restore),
    entries=lambda node: node.names,
)


def by_name(tree: Any) -> Any:
    """Replace every node that has ``__tree_named__`` by its `Named`."""
    if not _has_names(tree):
        return tree
    return optree.tree_map(
        lambda node: node.__tree_named__() if _is_named(node) else node, tree, is_leaf=_is_named
    )


def restored(tree: Any) -> Any:
    """The inverse of `by_name`."""

    def back(node: Any) -> Any:
        if not isinstance(node, Named):
            return node
        return node.restore(dict(zip(node.names, node.values, strict=True)))

    return optree.tree_map(back, tree, is_leaf=lambda node: isinstance(node, Named))


def _is_named(node: Any) -> bool:
    return hasattr(type(node), "__tree_named__")


def _has_names(tree: Any) -> bool:
    found = False

    def look(node: Any) -> bool:
        nonlocal found
        found = found or _is_named(node)
        return found

    optree.tree_leaves(tree, is_leaf=look)
    return found
