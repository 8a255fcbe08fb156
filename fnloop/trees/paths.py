"""Paths of leaves, such as ``"params/0.weight"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree

from fnloop.trees.named import by_name, restored


def tree_paths(tree: Any) -> list[str]:
    """The path of every leaf, in the order of `fl.tree_leaves`.

    A path joins field names, keys and indices with ``/``. In a key, ``/`` is written ``~1`` and
    ``~`` is written ``~0``, as in a JSON pointer.

    >>> tree_paths({"a": [1, 2], "b/c": 3})
    ['a/0', 'a/1', 'b~1c']
    """
    return [join(path) for path in optree.tree_paths(by_name(tree))]


def tree_items(tree: Any) -> list[tuple[str, Any]]:
    """Pairs of path and leaf, in the order of `fl.tree_leaves`.

    >>> tree_items({"a": [1, 2]})
    [('a/0', 1), ('a/1', 2)]
    """
    paths, leaves, _ = optree.tree_flatten_with_path(by_name(tree))
    return [(join(path), leaf) for path, leaf in zip(paths, leaves, strict=True)]


def map_with_path(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like `fl.tree_map`, but `f` gets the path of the leaf as its first argument."""
    trees = [by_name(each) for each in (tree, *rest)]
    return restored(optree.tree_map_with_path(lambda path, *leaves: f(join(path), *leaves), *trees))


def join(path: tuple[Any, ...]) -> str:
    """Convert a path to text."""
    return "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in path)


def split(path: str) -> tuple[str, ...]:
    """The inverse of `join`; all parts are strings."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in path.split("/"))
