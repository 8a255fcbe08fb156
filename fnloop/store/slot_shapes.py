"""The shapes of a state's memory, which must not change during a run."""

from __future__ import annotations

from collections.abc import Mapping

from fnloop.trees.equal import table
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.state import State


def shapes_of(state: State) -> dict[str, str]:
    """Shape and dtype of each tensor in the slots, as text."""
    return {path: short(leaf) for path, leaf in tree_items(state.slots)}


def check_shapes(first: Mapping[str, str], state: State) -> None:
    """Raise if memory has grown: a run could not be resumed from it. (Closing saves it anyway.)"""
    changed = [
        (f"slots/{path}", first[path], shape)
        for path, shape in shapes_of(state).items()
        if first.get(path, shape) != shape
    ]
    if changed:
        raise ValueError(
            "The memory has changed its shape since the first step, so that a run could "
            "not be resumed from it:\n"
            + table(("leaf", "first", "now"), changed)
            + "\nThe usual cause is a callback that collects values. Give its memory a fixed "
            "shape in init_state: the whole window, filled with nan."
        )
