"""``Shards``: the layout of tensors that are divided among ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Size, Tensor

from fnloop.distributed.mesh import Mesh
from fnloop.values.layouts import Layout, Pick, Separate, Storages, picking, stored


class Shards(Layout):
    """Each tensor is flattened and cut into equal pieces, one for each rank.

    The storages are the pieces of this rank, one for each tensor. Where the values do not divide
    evenly, the last pieces are shorter, or empty. Names and shapes are those of the whole tensors.

    Attributes:
        shapes: Shape of each tensor that is cut, as it is stored.
        mesh: The ranks.
        inner: The layout of what is cut, if that is itself a part of whole tensors.
    """

    __slots__ = ("inner", "mesh", "shapes", "sizes")  # pyright: ignore

    mesh: Mesh
    inner: Layout | None
    shapes: tuple[Size, ...]
    sizes: list[int]
    """Values in a piece that is not cut short, of each tensor."""

    def __new__(
        cls,
        names: Iterable[str],
        shapes: Iterable[Size],
        mesh: Mesh,
        pairs: Iterable[str] = (),
        inner: Layout | None = None,
    ) -> Shards:
        key = (tuple(names), tuple(shapes), mesh, frozenset(pairs), inner)
        known = _SHARDS.get(key)
        if known is None:
            known = object.__new__(cls)
            known._fill(key[0], key[3], key)
            known.shapes, known.mesh, known.inner = key[1], mesh, inner
            known.sizes = [
                _piece(math.prod(shape), mesh.data, 2 if name in key[3] else 1)
                for name, shape in zip(key[0], key[1], strict=True)
            ]
            _SHARDS[key] = known
        return known

    def views(self, storages: Storages) -> Storages:
        """This rank's pieces: nobody has the whole tensors."""
        return storages

    def join(self, named: Mapping[str, Tensor]) -> Storages:
        """This rank's pieces of whole tensors, as copies. Nothing is communicated."""
        if self.inner is not None:
            return self.cut(self.inner.join(named))
        return self.cut([stored(named[name], name in self.pairs) for name in self.names])

    def cut(self, tensors: Sequence[Tensor]) -> Storages:
        """This rank's pieces of what all ranks have, as copies."""
        rank = self.mesh.rank
        return tuple(
            [
                tensor.reshape(-1)[rank * size : (rank + 1) * size].clone()
                for tensor, size in zip(tensors, self.sizes, strict=True)
            ]
        )

    def whole(self, storages: Sequence[Tensor]) -> Storages:
        found = self.put_together(storages)
        return found if self.inner is None else self.inner.whole(found)

    def opened(self, storages: Storages) -> tuple[Layout, Storages]:
        layout = self.inner or Separate(self.names, self.pairs)
        return layout, self.put_together(storages)

    def put_together(self, storages: Sequence[Tensor]) -> Storages:
        """The tensors that were cut, as they are stored; one gather for each dtype."""
        found: list[Tensor] = list(storages)
        for places in by_dtype(storages):
            sizes = [self.sizes[i] for i in places]
            row = torch.cat([_padded(storages[i], self.sizes[i]) for i in places])
            columns = self.mesh.gather(row).split(sizes, dim=1)
            for i, column in zip(places, columns, strict=True):
                shape = self.shapes[i]
                flat = column.contiguous().view(-1)  # memory of its own, even of one value a rank
                found[i] = flat[: math.prod(shape)].reshape(shape)
        return tuple(found)

    def scatter(self, whole: Sequence[Tensor], share: Tensor | None = None) -> Storages:
        """This rank's pieces of the sums over ranks; one reduction for each dtype.

        If there is a `share`, what this rank adds is that times `whole`.
        """
        found: list[Tensor] = list(whole)
        ranks, rank = self.mesh.data, self.mesh.rank
        for places in by_dtype(whole):
            sizes = [self.sizes[i] for i in places]
            rows = [
                _padded(whole[i].reshape(-1), self.sizes[i] * ranks).reshape(ranks, -1)
                for i in places
            ]
            own = torch.cat(rows, dim=1)
            pieces = self.mesh.scatter(own if share is None else own.mul_(share)).split(sizes)
            for i, piece in zip(places, pieces, strict=True):
                left = math.prod(self.shapes[i]) - rank * self.sizes[i]
                found[i] = piece[: max(0, min(self.sizes[i], left))].clone()
        return tuple(found)

    def outlines(self, storages: Storages) -> Storages:
        if self.inner is not None:
            pairs = zip(self.shapes, storages, strict=True)
            outlines = [torch.empty(shape, dtype=s.dtype, device="meta") for shape, s in pairs]
            return self.inner.outlines(tuple(outlines)) or ()
        found: list[Tensor] = []
        for name, shape, piece in zip(self.names, self.shapes, storages, strict=True):
            one = torch.empty(shape, dtype=piece.dtype, device="meta")
            found.append(torch.view_as_complex(one) if name in self.pairs else one)
        return tuple(found)

    def counted(self, storages: Storages) -> Storages:
        return storages if self.inner is None else self.inner.counted(storages)

    def total(self, value: Tensor) -> Tensor:
        found = self.mesh.sum(value)
        return found if self.inner is None else self.inner.total(found)

    def beside(self, other: Layout) -> Layout:
        assert isinstance(other, Shards)
        names, shapes = (*self.names, *other.names), (*self.shapes, *other.shapes)
        inner = other.inner and self.inner and self.inner.beside(other.inner)
        return Shards(names, shapes, self.mesh, self.pairs | other.pairs, inner)

    def _select(self, names: tuple[str, ...]) -> tuple[Layout, Pick]:
        places = [self.index[name] for name in names]
        shapes = [self.shapes[i] for i in places]
        inner = None if self.inner is None else self.inner.select(names)
        pairs = self.pairs & set(names)
        return Shards(names, shapes, self.mesh, pairs, inner and inner[0]), picking(places)

    def __repr__(self) -> str:
        return f"Shards({len(self.names)} tensors over {self.mesh})"

    def __reduce__(self) -> Any:
        return Shards, (self.names, self.shapes, self.mesh, self.pairs, self.inner)


_SHARDS: WeakValueDictionary[Any, Shards] = WeakValueDictionary()


def _piece(values: int, ranks: int, together: int) -> int:
    """Values in a piece, of which so many (the two of a complex number) are not cut apart."""
    return -(-values // together // ranks) * together


def _padded(flat: Tensor, size: int) -> Tensor:
    short = size - flat.shape[0]
    return torch.cat([flat, flat.new_zeros(short)]) if short else flat


def by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The places of the tensors of each dtype."""
    places: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault(tensor.dtype, []).append(i)
    return list(places.values())
