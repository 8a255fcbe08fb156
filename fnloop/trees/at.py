"""Edit and split pytrees, out of place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import optree

from fnloop.trees.named import by_name, restored
from fnloop.trees.nodes import tree_map

T = TypeVar("T")


def tree_at(where: Callable[[T], Any], tree: T, value: Any) -> T:
    """A copy of `tree` with the node that `where` selects replaced by `value`.

    Args:
        where: Returns the node, or tuple of nodes, to replace: ``lambda t: t.a.b``.
        tree: Any pytree.
        value: The new node, or a tuple with one per selected node.

    Raises:
        ValueError: `where` returns something other than nodes of the tree, or the number of values
            differs.

    >>> tree_at(lambda t: t["a"][1], {"a": [1, 2], "b": 3}, 20)
    {'a': [1, 20], 'b': 3}
    >>> tree_at(lambda t: (t["a"], t["b"]), {"a": [1, 2], "b": 3}, (0, 4))
    {'a': 0, 'b': 4}
    """
    # Wrap every leaf in a new object, so that nodes have distinct identities even if the same
    # tensor occurs twice.
    marked = tree_map(_Mark, by_name(tree))
    if not callable(where) or isinstance(where, type):
        raise TypeError(f"tree_at(where, ...) takes a function, lambda t: t.a.b; got {where!r}.")
    found = where(marked)
    several = type(found) is tuple and not _contains(marked, found)
    targets, values = (found, value) if several else ((found,), (value,))
    if len(targets) != len(values):
        raise ValueError(
            f"tree_at: `where` selects {len(targets)} nodes, but {len(values)} values were given."
        )
    replacement = {id(target): new for target, new in zip(targets, values, strict=True)}
    seen: set[int] = set()

    def swap(node: Any) -> Any:
        if id(node) in replacement:
            seen.add(id(node))
            return replacement[id(node)]
        return node.leaf

    result: Any = optree.tree_map(swap, marked, is_leaf=lambda node: id(node) in replacement)
    if len(seen) < len(replacement):
        raise ValueError(
            "tree_at: `where` must return a node of its argument, and did not. Usual causes: it "
            "computes a new value, or selects a static field or None. Use dataclasses.replace for "
            "static fields."
        )
    return restored(result)


class _Mark:
    __slots__ = ("leaf",)

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf


def _contains(tree: Any, node: Any) -> bool:
    found = False

    def look(candidate: Any) -> bool:
        nonlocal found
        found = found or candidate is node
        return found

    optree.tree_leaves(tree, is_leaf=look)
    return found


def partition(tree: T, choose: Callable[[Any], bool]) -> tuple[T, T]:
    """Split `tree` into two trees: the leaves that `choose` accepts, and the others.

    Both have the containers of `tree`, with ``None`` for the leaves of the other. `combine` is the
    inverse.

    >>> partition({"a": 1, "b": 2.0}, lambda leaf: isinstance(leaf, float))
    ({'a': None, 'b': 2.0}, {'a': 1, 'b': None})
    """
    whole: Any = tree
    leaves, structure = optree.tree_flatten(whole)
    chosen = [choose(leaf) for leaf in leaves]
    yes = [leaf if c else None for leaf, c in zip(leaves, chosen, strict=True)]
    no = [None if c else leaf for leaf, c in zip(leaves, chosen, strict=True)]
    chosen_tree: Any = optree.tree_unflatten(structure, yes)
    rest: Any = optree.tree_unflatten(structure, no)
    return chosen_tree, rest


def combine(*trees: T) -> T:
    """Merge trees: at each leaf, take the first value that is not ``None``. Inverts `partition`.

    >>> combine({"a": None, "b": 2.0}, {"a": 1, "b": None})
    {'a': 1, 'b': 2.0}
    """

    def first(*values: Any) -> Any:
        return next((value for value in values if value is not None), None)

    parts: Any = trees
    result: Any = optree.tree_map(first, *parts, none_is_leaf=True)
    return result
