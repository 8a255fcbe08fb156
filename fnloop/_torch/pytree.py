"""Register a class as a pytree node in optree and in torch at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
    register_in_optree: Any = optree.register_pytree_node
    register_in_torch: Any = torch_pytree.register_pytree_node
    register_in_optree(
        cls,
        lambda obj: (children(obj), static(obj), fields),
        build,
        path_entry_type=optree.GetAttrEntry,
        namespace=_GLOBAL_NAMESPACE,
    )
    register_in_torch(
        cls,
        lambda obj: (list(children(obj)), static(obj)),
        lambda values, metadata: build(metadata, tuple(values)),
        flatten_with_keys_fn=lambda obj: (
            [
                (torch_pytree.GetAttrKey(name), child)
                for name, child in zip(fields, children(obj), strict=True)
            ],
            static(obj),
        ),
    )
