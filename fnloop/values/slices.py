"""``Slices``: the layout of tensors that the ranks of one model share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Size, Tensor

from fnloop.distributed.mesh import Mesh
from fnloop.values.layouts import Layout, Pick, Storages, picking, stored


class Slices(Layout):
    """Some tensors are cut along a dimension, a slice for each rank of `mesh.tensor`; others whole.

    Names and shapes are those of the whole tensors.

    Attributes:
        shapes: Shape of each whole tensor.
        dims: For each tensor, the dimension along which it is cut, 0 or more; None if each rank has
            it whole.
        mesh: The ranks.
    """

    __slots__ = ("dims", "mesh", "shapes")  # pyright: ignore

    mesh: Mesh
    shapes: tuple[Size, ...]
    dims: tuple[int | None, ...]

    def __new__(
        cls,
        names: Iterable[str],
        shapes: Iterable[Size],
        dims: Iterable[int | None],
        mesh: Mesh,
        pairs: Iterable[str] = (),
    ) -> Slices:
        key = (tuple(names), tuple(shapes), tuple(dims), mesh, frozenset(pairs))
        known = _SLICES.get(key)
        if known is None:
            known = object.__new__(cls)
            known._fill(key[0], key[4], key)
            known.shapes, known.dims, known.mesh = key[1], key[2], mesh
            _SLICES[key] = known
        return known

    def views(self, storages: Storages) -> Storages:
        """This rank's slices: nobody has the whole tensors."""
        return storages

    def join(self, named: Mapping[str, Tensor]) -> Storages:
        """This rank's slices of whole tensors, as copies. Nothing is communicated."""
        ranks, rank = self.mesh.tensor, self.mesh.across.rank
        found: list[Tensor] = []
        for name, dim in zip(self.names, self.dims, strict=True):
            tensor = stored(named[name], name in self.pairs)
            found.append(tensor.clone() if dim is None else tensor.chunk(ranks, dim)[rank].clone())
        return tuple(found)

    def whole(self, storages: Storages) -> Storages:
        across = self.mesh.across
        return tuple(
            [
                s if dim is None else torch.cat(across.gather(s.contiguous()).unbind(), dim)
                for s, dim in zip(storages, self.dims, strict=True)
            ]
        )

    def outlines(self, storages: Storages) -> Storages:
        found: list[Tensor] = []
        for name, shape, s in zip(self.names, self.shapes, storages, strict=True):
            dtype = s.dtype.to_complex() if name in self.pairs else s.dtype
            found.append(torch.empty(shape, dtype=dtype, device="meta"))
        return tuple(found)

    def counted(self, storages: Storages) -> Storages:
        if self.mesh.across.rank == 0:
            return storages
        pairs = zip(storages, self.dims, strict=True)
        return tuple([s for s, dim in pairs if dim is not None]) or (storages[0].new_zeros(1),)

    def total(self, value: Tensor) -> Tensor:
        return self.mesh.across.sum(value)

    def beside(self, other: Layout) -> Layout:
        assert isinstance(other, Slices)
        names, shapes = (*self.names, *other.names), (*self.shapes, *other.shapes)
        return Slices(names, shapes, (*self.dims, *other.dims), self.mesh, self.pairs | other.pairs)

    def _select(self, names: tuple[str, ...]) -> tuple[Layout, Pick]:
        places = [self.index[name] for name in names]
        shapes, dims = [self.shapes[i] for i in places], [self.dims[i] for i in places]
        return Slices(names, shapes, dims, self.mesh, self.pairs & set(names)), picking(places)

    def __repr__(self) -> str:
        cut = sum(dim is not None for dim in self.dims)
        return f"Slices({len(self.names)} tensors, {cut} of them over {self.mesh})"

    def __reduce__(self) -> Any:
        return Slices, (self.names, self.shapes, self.dims, self.mesh, self.pairs)


_SLICES: WeakValueDictionary[Any, Slices] = WeakValueDictionary()
