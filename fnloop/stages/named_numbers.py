"""Numbers inside a tree by the names that people use: ``"adamw.lr.peak"``."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fnloop.trees.nodes import is_tree, rebuilt

Replace = Callable[[str, Any, bool], Any]
"""Of a number's name, its value, and whether it is a leaf: the value to put there."""


def settings(tree: Any) -> dict[str, Any]:
    """The numbers and tensors that are leaves of `tree`, by dotted name.

    A part with a field ``name`` goes by that, an item of a dict by its key, and a part of an
    `fl.sequence` as in metrics: ``"generator/adam.lr"``. A stage adds nothing to the names of what
    it wraps.

    >>> import fnloop as fl
    >>> clip, adamw = fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(1e-3, steps=9))
    >>> list(settings(fl.optim.chain(clip, adamw)))[:3]
    ['clip_by_norm.max_norm', 'adamw.lr.peak', 'adamw.lr.end']
    """
    return _numbers(tree, leaves=True)


def with_settings(tree: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `tree` with the numbers replaced that `values` has, by their names in `settings`.

    >>> import fnloop as fl
    >>> with_settings(fl.optim.sgd(0.1, momentum=0.9), {"sgd.lr": 0.2})
    sgd(lr=0.2, momentum=0.9)
    """

    def new(name: str, value: Any, leaf: bool) -> Any:
        return values.get(name, value) if leaf else value

    return _mapped(tree, "", (), new)


def full_name(tree: Any, name: str, who: str) -> str:
    """The name in `settings` that `name` is short for: some of its parts, in order, and the last.

    Args:
        tree: As for `settings`.
        name: Such as ``"adamw.lr"`` for ``"head.adamw.lr"``.
        who: Who asks, for messages.

    Raises:
        ValueError: None fits, or several do, or what fits is part of the structure.
    """
    known = list(settings(tree))
    found = [name] if name in known else [full for full in known if _fits(name, full)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{who}: {name!r} may be {' or '.join(map(repr, found))}. Write it whole.")
    there = f"There are: {', '.join(known) or 'none'}."
    if fixed := [full for full in _numbers(tree, leaves=False) if _fits(name, full)]:
        raise ValueError(
            f"{who}: {fixed[0]!r} is an int, which is part of the structure: it decides what code "
            f"runs, so it is the same for all. What can vary are floats. {there}"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{who}: there is no number {name!r}.{hint} {there}")


def _fits(name: str, full: str) -> bool:
    wanted, parts = re.split("[./]", name), re.split("[./]", full)
    rest = iter(parts)
    return parts[-1] == wanted[-1] and all([part in rest for part in wanted])


def _numbers(tree: Any, leaves: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def note(name: str, value: Any, leaf: bool) -> Any:
        if leaf is leaves:
            found[name] = value
        return value

    _mapped(tree, "", (), note)
    return found


def _mapped(node: Any, folder: str, names: tuple[str, ...], replace: Replace) -> Any:
    """`node` with its numbers replaced; `names` lead to it, in the part `folder` of a sequence."""
    if isinstance(node, dict):
        return {k: _mapped(v, folder, (*names, str(k)), replace) for k, v in node.items()}
    if type(node) in (tuple, list):
        return type(node)(_mapped(value, folder, names, replace) for value in node)
    if not is_tree(node):
        return node
    own = getattr(node, "name", None)
    here = (*names, own) if isinstance(own, str) else names
    inside = () if hasattr(node, "kind") else here  # a stage has a kind
    new: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value, leaf = getattr(node, field.name), field.name in type(node).__tree_children__
        if _is_number(value):
            who = here or (getattr(node, "label", type(node).__name__),)
            value = replace(folder + ".".join((*who, field.name)), value, leaf)
        elif field.name == "parts" and hasattr(node, "names"):
            folders = [f"{folder}{name}/" for name in node.names]
            value = tuple(_mapped(v, f, (), replace) for v, f in zip(value, folders, strict=True))
        elif leaf:
            nested = (*inside, field.name) if _has_numbers(value) else inside
            value = _mapped(value, folder, nested, replace)
        new[field.name] = value
    return rebuilt(node, **new)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


def _has_numbers(node: Any) -> bool:
    """Whether a tree without a name of its own has numbers: a schedule has, a chain has not."""
    if not is_tree(node) or isinstance(getattr(node, "name", None), str) or hasattr(node, "kind"):
        return False
    return any(_is_number(getattr(node, field.name)) for field in dataclasses.fields(node))
