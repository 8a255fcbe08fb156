"""Which part of a whole tensor a rank has, for tensors that are divided among ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fnloop.distributed.mesh import Mesh
from fnloop.trees.paths import join
from fnloop.values.layouts import stored
from fnloop.values.shards import Shards
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


class Part(NamedTuple):
    """A rank's part of a whole tensor: a run of its values, row-major.

    Attributes:
        dtype: The whole tensor's dtype.
        shape: The whole tensor's shape.
        start: The first of the values.
        count: How many; none if the tensor has fewer values than there are ranks.

    >>> part = Part(torch.complex64, (3,), start=2, count=1)
    >>> part.logical(torch.tensor([3.0, 4.0])), part.kept(torch.tensor([3.0 + 4.0j]))
    (tensor([3.+4.j]), tensor([3., 4.]))
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def whole(self) -> Tensor:
        """The whole tensor, without values."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def logical(self, kept: Tensor) -> Tensor:
        """The values in the whole tensor's dtype; in its shape if they are all of them."""
        if self.dtype.is_complex:
            kept = torch.view_as_complex(kept.reshape(-1, 2))
        return kept.reshape(self.shape) if self.count == math.prod(self.shape) else kept

    def kept(self, logical: Tensor) -> Tensor:
        """The inverse of `logical`."""
        return stored(logical, self.dtype.is_complex).reshape(-1)


def parts_of(state: State) -> dict[str, Part]:
    """The parts that this rank has, by leaf path; leaves that it has whole are left out."""
    nodes: Any = optree.tree_flatten_with_path(
        state,  # pyright: ignore[reportArgumentType]
        is_leaf=lambda node: isinstance(node, Tensors),
    )
    return {
        join((*path, name)): _part(node.layout, place, storage)
        for path, node in zip(*nodes[:2], strict=True)
        if isinstance(node, Tensors) and isinstance(node.layout, Shards)
        for place, (name, storage) in enumerate(zip(node.names, node.peek_storages(), strict=True))
    }


def ranks_of(state: State) -> Mesh | None:
    """The ranks among which a state is divided; None if each has it whole."""
    return state.params.layout.mesh


def _part(layout: Shards, place: int, storage: Tensor) -> Part:
    dtype, shape, wide = storage.dtype, tuple(layout.shapes[place]), 1
    if layout.names[place] in layout.pairs:  # of reals, which are never cut apart
        dtype, shape, wide = dtype.to_complex(), shape[:-1], 2
    start = min(layout.mesh.rank * layout.sizes[place] // wide, math.prod(shape))
    return Part(dtype, shape, start, storage.numel() // wide)
