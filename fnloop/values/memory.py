"""Initialize a stage's slot, keeping the leaves that it already has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fnloop.trees.equal import table
from fnloop.trees.paths import map_with_path, tree_items
from fnloop.trees.show import short
from fnloop.values.stacked import check_single
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def fill(state: State, name: str, fresh: Any) -> State:
    """Add to slot `name` the leaves of `fresh` that it lacks.

    Existing leaves keep their values, also those that `fresh` lacks. The result has the structure
    of `fresh`: nested dicts, as loaded from a checkpoint, become the stage's pytree.

    Raises:
        TypeError: A leaf of `fresh` is not a tensor.
        ValueError: An existing leaf has another shape or dtype; the message lists them in a table.
    """
    for path, leaf in tree_items(fresh):
        if not isinstance(leaf, Tensor):
            place = "/".join(part for part in ("slots", name, path) if part)
            raise TypeError(
                f"The memory of the stage {name!r} has {short(leaf)} ({type(leaf).__name__}) at "
                f"{place}. Memory is made of tensors, fl.Tensors and dicts of them: write "
                f"torch.tensor({leaf!r}), on the device of state.step."
            )
    if name not in state.slots:
        return state.put(name, fresh)
    clashes: list[tuple[str, ...]] = []
    merged = _merge(state.slots[name], fresh, f"slots/{name}", clashes)
    if clashes:
        check_single(state, "The init of a single run's step")
        raise ValueError(
            f"The state's memory for the stage {name!r} does not fit this pipeline and model:\n"
            + table(("leaf", "the state has", "the stage wants"), clashes)
            + "\nThe usual cause is a state from another model. Start anew with "
            "step.init(model), or drop this memory: "
            f"state.replace(slots={{k: v for k, v in state.slots.items() if k != {name!r}}})."
        )
    return state.put(name, merged)


def _merge(old: Any, fresh: Any, path: str, clashes: list[tuple[str, ...]]) -> Any:
    if isinstance(old, Mapping) and isinstance(fresh, Tensors):
        named = _merge(dict(old), dict(fresh.items()), path, clashes)
        if named.keys() == fresh.keys():
            return fresh.like(named)
        # What only the state has is kept, in its order.
        return Tensors({name: named[name] for name in dict.fromkeys([*old, *fresh])})
    if isinstance(old, dict) and isinstance(fresh, dict):
        merged = {
            key: _merge(old[key], value, f"{path}/{key}", clashes) if key in old else value
            for key, value in fresh.items()
        }
        return {**merged, **{key: value for key, value in old.items() if key not in fresh}}
    there = dict(tree_items(old))

    def pick(leaf_path: str, leaf: Any) -> Any:
        if leaf_path not in there:
            return leaf
        found = there[leaf_path]
        if not (isinstance(found, Tensor) and isinstance(leaf, Tensor)):
            return found
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            full = "/".join(part for part in (path, leaf_path) if part)
            clashes.append((full, short(found), short(leaf)))
        return found

    return map_with_path(pick, fresh)
