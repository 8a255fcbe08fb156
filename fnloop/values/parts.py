"""Which part of a whole tensor a rank has, for tensors that are divided among ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fnloop.distributed.mesh import Mesh
from fnloop.trees.paths import join
from fnloop.values.layouts import stored
from fnloop.values.regions import Box, Region, volume
from fnloop.values.shards import Shards
from fnloop.values.slices import Slices
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


class Part(NamedTuple):
    """A rank's part of a whole tensor.

    Attributes:
        dtype: The whole tensor's dtype.
        shape: The whole tensor's shape.
        region: Which of its values; perhaps none, or all.
        first: Whether no rank before this one has the same part.

    >>> part = Part(torch.complex64, (3,), Region((range(3),), range(2, 3)), True)
    >>> kept = torch.tensor([3.0, 4.0])
    >>> part.logical(kept), part.kept(part.logical(kept), like=kept)
    (tensor([3.+4.j]), tensor([3., 4.]))
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    region: Region
    first: bool

    @property
    def whole(self) -> Tensor:
        """The whole tensor, without values."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def logical(self, kept: Tensor) -> Tensor:
        """The values in the whole tensor's dtype, in the region's shape."""
        if self.dtype.is_complex and not kept.is_complex():
            kept = torch.view_as_complex(kept.reshape(-1, 2))
        return kept.reshape(self.region.shape)

    def kept(self, logical: Tensor, like: Tensor) -> Tensor:
        """The inverse of `logical`; it is kept as `like` is."""
        return stored(logical, not like.is_complex()).reshape(like.shape)


def check_savable(state: State) -> None:
    """Refuse a population whose tensors are divided among ranks, which no checkpoint holds.

    Raises:
        ValueError: It is one.
    """
    if state.step.ndim and ranks_of(state) is not None:
        raise ValueError(
            "The state of a population is divided among ranks, and checkpoints hold one that each "
            'rank has whole, or one member. Shard the step with the plan "replicate": '
            "fl.shard(step, mesh). What is there can be saved as fl.gather(state), or as "
            "fl.member(state, i)."
        )


def parts_of(state: State) -> dict[str, Part]:
    """The parts that this rank has, by leaf path, of the tensors in divided layouts."""
    check_savable(state)
    nodes: Any = optree.tree_flatten_with_path(
        state,  # pyright: ignore[reportArgumentType]
        is_leaf=lambda node: isinstance(node, Tensors),
    )
    return {
        join((*path, name)): _part(node.layout, place, storage)
        for path, node in zip(*nodes[:2], strict=True)
        if isinstance(node, Tensors) and isinstance(node.layout, Shards | Slices)
        for place, (name, storage) in enumerate(zip(node.names, node.peek_storages(), strict=True))
    }


def ranks_of(state: State) -> Mesh | None:
    """The ranks among which a state is divided, along one axis; None if each has it whole."""
    mesh = state.params.layout.mesh
    return mesh and mesh.everyone


def _part(layout: Shards | Slices, place: int, storage: Tensor) -> Part:
    mesh, pair = layout.mesh, layout.names[place] in layout.pairs
    dtype = storage.dtype.to_complex() if pair else storage.dtype
    slices = layout.inner if isinstance(layout, Shards) else layout
    if isinstance(slices, Slices):
        shape, box = slices.shapes[place], _box(slices, place)
        first = slices.dims[place] is not None or mesh.across.rank == 0
    else:
        shape, first = layout.shapes[place][: -1 if pair else None], True
        box = tuple(map(range, shape))
    run = range(volume(box))
    if isinstance(layout, Shards):
        size = layout.sizes[place] // (2 if pair else 1)
        run = run[mesh.rank * size : (mesh.rank + 1) * size]
    else:
        first = first and mesh.rank == 0
    return Part(dtype, tuple(shape), Region(box, run), first)


def _box(layout: Slices, place: int) -> Box:
    """The indices of this rank's slice."""
    box, dim = list(map(range, layout.shapes[place])), layout.dims[place]
    if dim is not None:
        size, rank = len(box[dim]) // layout.mesh.tensor, layout.mesh.across.rank
        box[dim] = box[dim][rank * size : (rank + 1) * size]
    return tuple(box)
