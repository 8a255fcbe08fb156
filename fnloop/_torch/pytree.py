"""Register a class as a pytree node in optree and in torch at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import optree
import torch.utils._pytree as torch_pytree

# torch.func only sees classes that are registered with torch, and optree only those that are
# registered with optree. Its global namespace makes `optree.tree_map(f, state)` work as it is.
_registry: Any = sys.modules["optree.registry"]
_GLOBAL_NAMESPACE: Any = _registry.__dict__["__GLOBAL_NAMESPACE"]


def register(
    cls: type,
    fields: tuple[str, ...],
    children: Callable[[Any], tuple[Any, ...]],
    static: Callable[[Any], tuple[Any, ...]],
    build: Callable[[tuple[Any, ...], tuple[Any, ...]], Any],
) -> None:
    """Make `cls` a node with children named `fields` and metadata ``static(obj)``."""
    register_node(cls, children, static, build, lambda obj: fields, optree.GetAttrEntry)


def register_node(
    cls: type,
    children: Callable[[Any], Iterable[Any]],
    static: Callable[[Any], Any],
    build: Callable[[Any, Any], Any],
    entries: Callable[[Any], tuple[Any, ...]],
    entry_type: Any = optree.MappingEntry,
) -> None:
    """Make `cls` a node.

    ``None`` is no leaf: optree takes it for an empty node, and torch is told of the other children
    only.

    Args:
        cls: The class.
        children: Of an object.
        static: What else an object is made of; it must compare and hash.
        build: From ``static(obj)`` and children to an object; without checks, since
            transformations put placeholders where the leaves were.
        entries: The names of the children.
        entry_type: How optree reaches a child by its name.
    """
    register_in_optree: Any = optree.register_pytree_node
    register_in_torch: Any = torch_pytree.register_pytree_node
    register_in_optree(
        cls,
        lambda obj: (children(obj), static(obj), entries(obj)),
        build,
        path_entry_type=entry_type,
        namespace=_GLOBAL_NAMESPACE,
    )

    def flatten(obj: Any) -> tuple[list[Any], Any]:
        values = list(children(obj))
        empty = tuple([i for i, value in enumerate(values) if value is None])
        return [value for value in values if value is not None], (static(obj), empty)

    def unflatten(values: Iterable[Any], metadata: Any) -> Any:
        kept, empty = list(values), metadata[1]
        for i in empty:
            kept.insert(i, None)
        return build(metadata[0], tuple(kept))

    def with_keys(obj: Any) -> tuple[list[Any], Any]:
        key = torch_pytree.GetAttrKey
        pairs = zip(entries(obj), children(obj), strict=True)
        named = [(key(str(name)), child) for name, child in pairs if child is not None]
        return named, flatten(obj)[1]

    register_in_torch(cls, flatten, unflatten, flatten_with_keys_fn=with_keys)
