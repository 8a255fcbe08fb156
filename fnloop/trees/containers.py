"""Find where two pytrees differ in their containers or static fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import optree

from fnloop.trees.named import Named, by_name
from fnloop.trees.nodes import is_tree
from fnloop.trees.paths import join
from fnloop.trees.show import short

_WIDTH = 60


def container_rows(a: Any, b: Any, path: tuple[Any, ...] = ()) -> list[tuple[str, ...]]:
    """The differences between `a` and `b` besides their leaves: path, both, and what differs.

    Names of leaves that only one of them has are left out.
    """
    if _structure(a) == _structure(b) or optree.tree_is_leaf(a) or optree.tree_is_leaf(b):
        return []
    if type(a) is not type(b):
        return [(join(path), _kind(a), _kind(b), "container")]
    left, right = _children(a), _children(b)
    rows = _static_rows(a, b, path)
    for key in [*left, *(key for key in right if key not in left)]:
        place = (*path, key)
        if key not in right:
            if not optree.tree_leaves(left[key]):
                rows.append((join(place), _kind(left[key]), "-", "only in a"))
        elif key not in left:
            if not optree.tree_leaves(right[key]):
                rows.append((join(place), "-", _kind(right[key]), "only in b"))
        else:
            rows += container_rows(left[key], right[key], place)
    if not rows and left.keys() == right.keys() and all(map(_alike, left.values(), right.values())):
        rows.append((join(path), _kind(a), _kind(b), "order or static data"))
    return rows


def _static_rows(a: Any, b: Any, path: tuple[Any, ...]) -> list[tuple[str, ...]]:
    if not is_tree(a):
        return []
    children = type(a).__tree_children__
    fields = [f.name for f in dataclasses.fields(a) if f.name not in children]
    pairs = [(field, getattr(a, field), getattr(b, field)) for field in fields]
    return [
        (join((*path, field)), _cut(short(x)), _cut(short(y)), "static field")
        for field, x, y in pairs
        if x != y
    ]


def _children(node: Any) -> dict[Any, Any]:
    named = by_name(node) if hasattr(type(node), "__tree_named__") else node
    if isinstance(named, Named):
        return dict(zip(named.names, named.values, strict=True))
    flat = optree.tree_flatten_one_level(named)
    return dict(zip(flat[2], flat[0], strict=True))


def _structure(node: Any) -> Any:
    return optree.tree_structure(by_name(node))


def _alike(a: Any, b: Any) -> bool:
    return _structure(a) == _structure(b)


def _kind(node: Any) -> str:
    return "None" if node is None else type(node).__name__


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
