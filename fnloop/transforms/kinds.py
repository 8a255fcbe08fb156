"""What a graph depends on besides the code: if it changes, another graph is needed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

import optree
import torch
from torch import Tensor


def kind_of(leaf: Any) -> Any:
    """What a graph depends on: a tensor's shape, strides, dtype and device, or a plain value."""
    if isinstance(leaf, Tensor):
        if leaf.layout is not torch.strided:
            return leaf.layout
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    if isinstance(leaf, (int, str, bytes)):
        return type(leaf), leaf
    return type(leaf), repr(leaf)  # repr tells -0.0 from 0.0, and nan equals nan


def orders_of(batch: Any) -> tuple[Any, ...]:
    """The keys of each dict in a batch, as they stand: a loss may loop over them.

    They are not in optree's structures, which sort them.

    >>> orders_of([{"b": 1, "a": {"z": 2, "y": 3}}])
    (('b', 'a'), ('z', 'y'))
    """
    if isinstance(batch, Tensor) or (type(batch) is tuple and set(map(type, batch)) == _TENSORS):
        return ()  # as most batches are
    tree, found = cast(Any, batch), list[Any]()

    def note(node: Any) -> bool:
        if type(node) in _DICTS:
            found.append(tuple(node))
        return False

    optree.tree_flatten(tree, is_leaf=note)
    return tuple(found)


_TENSORS, _DICTS = {Tensor}, {dict, defaultdict}


def kind_but_sizes(leaf: Any) -> Any:
    """The same without shape and strides of a tensor."""
    if isinstance(leaf, Tensor):
        return leaf.ndim, leaf.dtype, leaf.device, leaf.requires_grad
    return kind_of(leaf)


def ambient() -> Any:
    """The global settings that a graph depends on; its machine code has the number of threads."""
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_anomaly_enabled(),
        (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")) if autocast else None,
    )
