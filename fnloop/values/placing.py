"""Tensors divided among ranks, put together again, and summed over ranks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop.dist.agreement import RankError, first_difference
from fnloop.dist.mesh import Mesh
from fnloop.trees.named import by_name
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.layouts import Separate
from fnloop.values.shards import Shards, by_dtype
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def divided(tensors: Tensors, mesh: Mesh) -> Tensors:
    """This rank's pieces of tensors that every rank has whole."""
    if tensors.layout.mesh is not None:
        return tensors
    one = Separate(tensors.names, tensors.layout.pairs)
    shapes = [t.shape for t in one.join(dict(tensors.items()))]
    return Tensors.of(
        layout := Shards(tensors.names, shapes, mesh, tensors.layout.pairs),
        layout.join(dict(tensors.items())),
    )


def scattered(tensors: Tensors, like: Tensors) -> Tensors:
    """The sums over ranks, in the layout of `like`, which has the same names."""
    layout = like.layout
    assert isinstance(layout, Shards)
    one = Separate(layout.names, layout.pairs)
    return Tensors.of(layout, layout.scatter(one.join(dict(tensors.items()))))


def summed(tensors: Tensors, mesh: Mesh) -> Tensors:
    """The sums over ranks, on every rank; one reduction for each dtype."""
    if mesh.data == 1:
        return tensors
    storages = tensors.storages
    found: list[Tensor] = list(storages)
    for places in by_dtype(storages):
        flat = mesh.sum(torch.cat([storages[i].reshape(-1) for i in places]))
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


def _divided_in(tree: Any, mesh: Mesh, shapes: Mapping[str, Any]) -> Any:
    """A slot in which each `Tensors` with a value for each of a parameter's is divided."""
    if isinstance(tree, Tensors):
        return divided(tree, mesh) if is_divisible(tree, shapes) else tree
    if isinstance(tree, dict):
        return {key: _divided_in(value, mesh, shapes) for key, value in tree.items()}
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


def place_state(state: State, mesh: Mesh) -> State:
    """The state with its parameters, and what is kept for each of their values, divided."""
    state = whole_state(state)
    if mesh.data == 1:
        return state
    shapes = {name: p.shape for name, p in state.params.items()}
    return state.replace(
        params=divided(state.params, mesh),
        slots=_divided_in(state.slots, mesh, shapes),
    )


def whole_state(state: State) -> State:
    """The state as one process has it; all ranks must call it."""
    if state.params.layout.mesh is None:
        return state
    return state.replace(params=state.params.whole(), slots=map_divided(Tensors.whole, state.slots))
