"""Fresh averages: they start from the parameters that are loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, empty_like

from fnloop.trees.equal import tree_equal
from fnloop.trees.named import by_name
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def refreshed(like: State, loaded: State, slots: Collection[str]) -> dict[str, Any]:
    """`slots` of `like`, with copies of its parameters replaced by copies of the loaded ones.

    A fresh average (`fl.ema`) holds copies of the parameters of `like`. When other parameters are
    loaded, the average should start from those.
    """
    old = {**_named(like.params), **_named(like.buffers)}
    new = {**_named(loaded.params), **_named(loaded.buffers)}
    return {name: _refreshed(like.slots[name], old, new, 0) for name in slots}


def _named(tensors: Tensors) -> dict[str, Tensor]:
    """What this process has of each."""
    named = by_name(tensors)
    return dict(zip(named.names, named.values, strict=True))


def _refreshed(
    memory: Any, old: Mapping[str, Tensor], new: Mapping[str, Tensor], depth: int
) -> Any:
    """`memory` with copies of `new` where it holds copies of `old`.

    Nested zeros are left alone: they are optimizer state, even if the parameters are zero too.
    """
    if not isinstance(memory, Mapping) or not memory:
        return memory
    leaves: Mapping[str, Any] = _named(memory) if isinstance(memory, Tensors) else memory
    if not all(_is_copy(leaf, old.get(name)) for name, leaf in leaves.items()):
        if isinstance(memory, Tensors):
            return memory
        return {key: _refreshed(part, old, new, depth + 1) for key, part in memory.items()}
    if depth and not any(bool(leaf.any()) for leaf in leaves.values()):
        return memory
    copied = {name: empty_like(leaf).copy_(new[name]) for name, leaf in leaves.items()}
    return by_name(memory).restore(copied) if isinstance(memory, Tensors) else copied


def _is_copy(leaf: Any, old: Tensor | None) -> bool:
    return isinstance(leaf, Tensor) and old is not None and tree_equal(leaf, old.to(leaf.dtype))
