"""Which of two outcomes: a choice where values may be looked at, else a selection."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch.tracing import tracing
from fnloop.optim.base import keep_if
from fnloop.stages.measure import constant
from fnloop.trees.nodes import tree_map
from fnloop.values.packed import groups_of, pick, together

Flag: TypeAlias = bool | Tensor
"""A bool where values may be looked at, else bool[]."""


def look(value: Any, device: torch.device) -> Flag:
    """Whether a number is not zero: looked up on the CPU, where that costs nothing."""
    if not (tracing() or device.type != "cpu"):
        return bool(value)
    if isinstance(value, Tensor):
        return value.to(device) != 0
    return constant(bool(value), device, torch.bool)


def negated(flag: Flag) -> Flag:
    """The other one."""
    return ~flag if isinstance(flag, Tensor) else not flag


def select(good: Flag, new: Any, old: Any) -> Any:
    """`new` if `good`, else `old`; what is in `new` alone stays."""
    if good is True or new is old:
        return new
    if isinstance(new, dict) and isinstance(old, dict):
        if groups_of(new):  # vectors: see `fnloop.values.packed`
            return together(new, keep_if(good, pick(new, old), old))
        return {k: select(good, own, old[k]) if k in old else own for k, own in new.items()}
    if good is False:
        return old
    return tree_map(lambda x, y: torch.where(good, _tensor(x, good), _tensor(y, good)), new, old)


def _tensor(leaf: Any, like: Tensor) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf
    dtype = torch.float64 if isinstance(leaf, float) else None
    return torch.full((), leaf, dtype=dtype, device=like.device)
