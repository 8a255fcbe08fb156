"""Comparing what a step gives in two ways, for the checks of laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnloop.stages.base import Stage
from fnloop.trees.nodes import tree_map
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.state import State

Step = Callable[[State, Any], tuple[State, Any]]


class LawError(AssertionError):
    """A stage broke one of the laws; the message says which, and where."""


def apart(expected: Any, got: Any, rtol: float, atol: float) -> list[tuple[str, ...]]:
    """The leaves that differ by more than rounding, as rows: path, both values, difference."""
    left, right = dict(tree_items(expected)), dict(tree_items(got))
    rows: list[tuple[str, ...]] = []
    for path in [*left, *(p for p in right if p not in left)]:
        x, y = left.get(path, "-"), right.get(path, "-")
        how = _difference(x, y, rtol, atol)
        if how:
            rows.append((path, short(x), short(y), how))
    return rows


def _difference(x: Any, y: Any, rtol: float, atol: float) -> str:
    """How two leaves differ by more than rounding; empty if they do not."""
    if isinstance(x, str) or isinstance(y, str):
        return "" if x == y else "value"
    a, b = torch.as_tensor(x), torch.as_tensor(y)  # a number of the step may be a compiled tensor
    if a.shape != b.shape:
        return "shape"
    wide = torch.complex128 if a.is_complex() else torch.float64
    if a.is_floating_point() or a.is_complex():
        off = ~torch.isclose(a.detach().to(wide), b.detach().to(wide), rtol, atol, equal_nan=True)
    else:
        off = a != b
    if not off.any():
        return ""
    most = (a[off].to(wide) - b[off].to(wide)).abs().max()
    return f"{int(off.sum())} of {off.numel()} values, at most {float(most):.3g}"


def copy_of(value: Any) -> Any:
    """A copy of a tree, detached."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def name_of(step: Any) -> str:
    """How messages call a step."""
    return step.describe() if isinstance(step, Stage) else short(step)
