"""Tensors divided among ranks, put together again, and summed over ranks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.distributed.gates import RankError, first_difference
from fnloop.distributed.mesh import Mesh
from fnloop.trees.named import by_name
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.layouts import Separate
from fnloop.values.shards import Shards, by_dtype
from fnloop.values.slices import Slices
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def divided(tensors: Tensors, mesh: Mesh) -> Tensors:
    """This rank's pieces of tensors that all ranks of `mesh.data` have."""
    inner = tensors.layout if tensors.layout.mesh is not None else None
    if isinstance(inner, Shards):
        return tensors
    stored = _stored(tensors)
    layout = Shards(tensors.names, [t.shape for t in stored], mesh, tensors.layout.pairs, inner)
    return Tensors.of(layout, layout.cut(stored))


def is_cut(tensors: Tensors) -> bool:
    """Whether they are divided among the ranks of `mesh.data`."""
    return isinstance(tensors.layout, Shards)


def _stored(tensors: Tensors) -> Sequence[Tensor]:
    """One storage for each tensor."""
    if tensors.layout.mesh is not None:
        return tensors.storages
    return Separate(tensors.names, tensors.layout.pairs).join(dict(tensors.items()))


def sliced(tensors: Tensors, mesh: Mesh, dims: Mapping[str, int | None]) -> Tensors:
    """This rank's slices of whole tensors, cut along `dims`, given by name."""
    shapes = [t.shape for t in tensors.values()]
    own = [
        None if (dim := dims[name]) is None else dim % len(shape)
        for name, shape in zip(tensors.names, shapes, strict=True)
    ]
    layout = Slices(tensors.names, shapes, own, mesh, tensors.layout.pairs)
    return Tensors.of(layout, layout.join(dict(tensors.items())))


def scattered(tensors: Tensors, like: Tensors, share: Tensor | None) -> Tensors:
    """The sums over ranks, in the layout of `like`, which has the same names.

    If there is a `share`, what this rank adds is that times `tensors`.
    """
    layout = like.layout
    assert isinstance(layout, Shards)
    return Tensors.of(layout, layout.scatter(_stored(tensors.select(layout.names)), share))


def cut_like(tensors: Tensors, like: Tensors) -> Tensors:
    """This rank's pieces of what all ranks have, in the layout of `like`, of the same names."""
    layout = like.layout
    assert isinstance(layout, Shards)
    return Tensors.of(layout, layout.cut(_stored(tensors.select(layout.names))))


def summed(tensors: Tensors, mesh: Mesh, share: Tensor | None) -> Tensors:
    """The sums over ranks, on every rank; one reduction for each dtype.

    If there is a `share`, what this rank adds is that times `tensors`.
    """
    storages = tensors.storages
    found: list[Tensor] = list(storages)
    for places in by_dtype(storages):
        own = torch.cat([storages[i].reshape(-1) for i in places])
        # Weighed after it is copied, so that there is one copy less.
        flat = mesh.sum(own if share is None else own.mul_(share))
        parts = flat.split([storages[i].numel() for i in places])
        for i, part in zip(places, parts, strict=True):
            found[i] = part.reshape(storages[i].shape)
    return Tensors.of(tensors.layout, found)


def gathered(tensors: Tensors, mesh: Mesh) -> list[Tensors]:
    """The tensors of each rank, in order; one gather for each dtype."""
    if mesh.data == 1:
        return [tensors]
    storages = tensors.storages
    found = [list(storages) for _ in range(mesh.data)]
    for places in by_dtype(storages):
        rows = mesh.gather(torch.cat([storages[i].reshape(-1) for i in places]))
        for own, row in zip(found, rows, strict=True):
            parts = row.split([storages[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                own[i] = part.reshape(storages[i].shape)
    return [Tensors.of(tensors.layout, own) for own in found]


def map_divided(f: Any, tree: Any) -> Any:
    """Apply `f` to each `Tensors` in a tree of dicts that is divided among ranks."""
    if isinstance(tree, Tensors):
        return tree if tree.layout.mesh is None else f(tree)
    if isinstance(tree, dict):
        return {key: map_divided(f, value) for key, value in tree.items()}
    return tree


def is_divisible(tensors: Tensors, shapes: Mapping[str, Any]) -> bool:
    """Whether they have a value for each of a parameter's, whose shapes are given."""
    if not tensors.names:
        return False
    return all([shapes.get(name) == outline.shape for name, outline in tensors.outlines()])


def _map_divisible(f: Any, tree: Any, shapes: Mapping[str, Any]) -> Any:
    """Apply `f` to each `Tensors` of a slot that has a value for each of a parameter's."""
    if isinstance(tree, Tensors):
        return f(tree) if is_divisible(tree, shapes) else tree
    if isinstance(tree, dict):
        return {key: _map_divisible(f, value, shapes) for key, value in tree.items()}
    return tree


def check_same(mesh: Mesh, state: State) -> None:
    """Check that all ranks have the same state, but for what is divided among them."""
    if difference := first_difference(mesh, _digests(state)):
        raise RankError(
            f"The ranks have different states: {difference}. Every rank begins with the same: "
            "build the model in a function, step.init(lambda: Net(), seed=0), or call "
            "torch.manual_seed(0) before; and load the same checkpoint on all."
        )


def _digests(state: State) -> list[str]:
    """A line for each tensor that every rank has whole, with a digest of its values."""
    if state.params.layout.mesh is not None:
        return []
    return [
        f"{path} {short(leaf)} with the digest {zlib.crc32(_bytes(leaf)):08x}"
        for path, leaf in tree_items(by_name(state))
        if not leaf.is_meta
    ]


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().to("cpu").resolve_conj().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def place_state(
    state: State, mesh: Mesh, pieces: bool = True, dims: Mapping[str, int | None] | None = None
) -> State:
    """The state with its parameters, and what is kept for each of their values, divided.

    Args:
        state: The state.
        mesh: The ranks.
        pieces: Whether they are divided among the ranks of `mesh.data`.
        dims: The dimension along which each parameter is cut among those of `mesh.tensor`.
    """
    state = whole_state(state)
    shapes = {name: p.shape for name, p in state.params.items()}

    def placed(tensors: Tensors) -> Tensors:
        if mesh.tensor > 1 and dims is not None:
            tensors = sliced(tensors, mesh, dims)
        return divided(tensors, mesh) if pieces and mesh.data > 1 else tensors

    if mesh.everyone.data == 1:
        return state
    slots = _map_divisible(placed, state.slots, shapes)
    return state.replace(params=placed(state.params), slots=slots)


def whole_state(state: State) -> State:
    """The state as one process has it; all ranks must call it."""
    if state.params.layout.mesh is None:
        return state
    # Of a population, the members' tensors together.
    whole: Any = torch.func.vmap(Tensors.whole) if state.step.ndim else Tensors.whole
    return state.replace(params=whole(state.params), slots=map_divided(whole, state.slots))
