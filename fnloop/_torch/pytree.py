"""Register a class as a pytree node in both optree and torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import optree
import torch.utils._pytree as torch_pytree

# torch.func uses torch's registry. optree has its own; in its global namespace, no namespace
# argument is needed: optree.tree_map(f, state).
_registry: Any = sys.modules["optree.registry"]
_GLOBAL_NAMESPACE: Any = _registry.__dict__["__GLOBAL_NAMESPACE"]


def register(
    cls: type,
    fields: tuple[str, ...],
    children: Callable[[Any], tuple[Any, ...]],
    static: Callable[[Any], tuple[Any, ...]],
    build: Callable[[tuple[Any, ...], Iterable[Any]], Any],
) -> None:
    """Register `cls` as a node with children named `fields` and metadata ``static(obj)``."""
    register_node(cls, children, static, build, lambda obj: fields, optree.GetAttrEntry)


def register_node(
    cls: type,
    children: Callable[[Any], Iterable[Any]],
    static: Callable[[Any], Any],
    build: Callable[[Any, Any], Any],
    entries: Callable[[Any], tuple[Any, ...]],
    entry_type: Any = optree.MappingEntry,
) -> None:
    """Register `cls` as a node.

    ``None`` is not a leaf: optree treats it as an empty node, and torch sees only the other
    children.

    Args:
        cls: The class.
        children: Returns the children of an object.
        static: Returns the metadata of an object, which must be comparable and hashable.
        build: Makes an object from ``static(obj)`` and children. It must not check them, since
            transformations put placeholders in place of leaves.
        entries: Returns the names of the children.
        entry_type: optree's way to access a child by its name.
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
