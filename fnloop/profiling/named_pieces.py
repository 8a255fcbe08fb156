"""The tensors of a state by path; of those that are divided among ranks, the pieces of this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def pieces_of(state: State) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and the memory of stages, by paths such as ``"slots/ema/weight"``."""
    yield from pieces_in(state.params, "params/")
    yield from pieces_in(state.buffers, "buffers/")
    yield from pieces_in(state.slots, "slots/")


def pieces_in(node: Any, folder: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a part of a state, or among gradients."""
    if isinstance(node, Tensors):
        leaves = node.values() if node.layout.mesh is None else node.storages
        for name, leaf in zip(node.names, leaves, strict=True):
            yield folder + name, leaf
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from pieces_in(value, f"{folder}{name}/")
    elif isinstance(node, Tensor):
        yield folder.removesuffix("/"), node
