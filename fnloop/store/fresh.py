"""Fresh averages: they start from the parameters that are loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, empty_like

from fnloop.trees.equal import tree_equal
from fnloop.trees.named import by_name
from fnloop.trees.paths import map_with_path, split, tree_items
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def refreshed(like: State, loaded: State, fresh: Collection[str]) -> State:
    """`loaded`, with copies of its own parameters where it has `like`'s copies of `like`'s.

    A fresh average (`fl.ema`) holds copies of the parameters of `like`. When other parameters are
    loaded, the average should start from those.

    Args:
        like: The state that has the structure.
        loaded: The same with other parameters.
        fresh: The paths of leaves in slots whose values are those of `like`.
    """
    old = {**_named(like.params), **_named(like.buffers)}
    new = {**_named(loaded.params), **_named(loaded.buffers)}
    copies: dict[str, Tensor] = {}
    for parent, leaves in _siblings(like, old).items():
        if not leaves.keys().isdisjoint(fresh):
            is_slot = parent.count("/") == 1
            for path in _copies(leaves, old, is_slot).intersection(fresh):
                copies[path] = empty_like(leaves[path]).copy_(new[_name(path)])
    tree = {"slots": loaded.slots}
    return loaded.replace(**map_with_path(lambda path, leaf: copies.get(path, leaf), tree))


def _named(tensors: Tensors) -> dict[str, Tensor]:
    """What this process has of each."""
    named = by_name(tensors)
    return dict(zip(named.names, named.values, strict=True))


def _siblings(state: State, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The leaves of slots that are called by one of `names`, by path, by where they lie."""
    found: dict[str, dict[str, Tensor]] = {}
    for path, leaf in tree_items({"slots": state.slots}):
        if _name(path) in names and isinstance(leaf, Tensor):
            found.setdefault(path.rpartition("/")[0], {})[path] = leaf
    return found


def _name(path: str) -> str:
    return split(path)[-1]


def _copies(leaves: Mapping[str, Tensor], old: Mapping[str, Tensor], is_slot: bool) -> set[str]:
    """Those of some leaves, which lie together, that are copies of parameters.

    Where not all of them are, an equal one that is filled with one number says nothing: moments
    are zero, and so are many biases. Nor do nested zeros, even if all parameters are zero too.
    """
    equal = {path for path, leaf in leaves.items() if _is_copy(leaf, old[_name(path)])}
    if len(equal) == len(leaves) and (is_slot or any(bool(x.any()) for x in leaves.values())):
        return equal
    return {path for path in equal if _varies(leaves[path])}


def _is_copy(leaf: Tensor, old: Tensor) -> bool:
    return not leaf.is_meta and tree_equal(leaf, old.to(leaf.device, leaf.dtype))


def _varies(leaf: Tensor) -> bool:
    values = leaf.flatten()
    return bool((values[:1] != values).any())
