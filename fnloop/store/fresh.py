"""Fresh averages: they start from the parameters that are loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, empty_like

from fnloop.trees.equal import tree_equal
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def refreshed(like: State, loaded: State, slots: Collection[str]) -> dict[str, Any]:
    """`slots` of `like`, with copies of its parameters replaced by copies of the loaded ones.

    A fresh average (`fl.ema`) holds copies of the parameters of `like`. When other parameters are
    loaded, the average should start from those.
    """
    old, new = {**like.params, **like.buffers}, {**loaded.params, **loaded.buffers}
    return {name: _refreshed(like.slots[name], old, new, 0) for name in slots}


def _refreshed(
    memory: Any, old: Mapping[str, Tensor], new: Mapping[str, Tensor], depth: int
) -> Any:
    """`memory` with copies of `new` where it holds copies of `old`.

    Nested zeros are left alone: they are optimizer state, even if the parameters are zero too.
    """
    if not isinstance(memory, Mapping) or not memory:
        return memory
    if not all(_is_copy(leaf, old.get(name)) for name, leaf in memory.items()):
        if isinstance(memory, Tensors):
            return memory
        return {key: _refreshed(part, old, new, depth + 1) for key, part in memory.items()}
    if depth and not any(bool(leaf.any()) for leaf in memory.values()):
        return memory
    copied = {name: empty_like(leaf).copy_(new[name]) for name, leaf in memory.items()}
    return memory.like(copied) if isinstance(memory, Tensors) else copied


def _is_copy(leaf: Any, old: Tensor | None) -> bool:
    return isinstance(leaf, Tensor) and old is not None and tree_equal(leaf, old.to(leaf.dtype))
