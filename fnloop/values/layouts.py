"""Layouts: how named tensors are stored, one by one or concatenated into a few long tensors.

A layout turns named tensors into storages (`join`) and storages into named tensors (`views`).
Layouts are static, hashable and interned: equal layouts are the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fnloop.distributed.mesh import Mesh

Storages: TypeAlias = tuple[Tensor, ...]
Pick: TypeAlias = Callable[[Storages], Storages]


class Layout:
    """Base class of the layouts.

    Attributes:
        names: Names of the tensors, in order.
        index: Position of each name in `names`.
        pairs: Names of the complex tensors. They are stored as real tensors with a trailing
            dimension of size 2 (``view_as_real``), and arithmetic runs on those, as in
            ``torch.optim``.
    """

    __slots__ = ("__weakref__", "_hash", "_picks", "index", "names", "pairs")

    mesh: Mesh | None = None
    """The ranks among which the tensors are divided; None if each has them whole."""
    names: tuple[str, ...]
    index: dict[str, int]
    pairs: frozenset[str]

    def _fill(self, names: tuple[str, ...], pairs: frozenset[str], key: Any) -> None:
        self.names, self.pairs, self._hash = names, pairs, hash(key)
        self.index = {name: i for i, name in enumerate(names)}
        self._picks: dict[tuple[str, ...], tuple[Layout, Pick] | None] = {}

    def views(self, storages: Storages) -> Storages:
        """The tensors in the order of `names`, as views of the storages."""
        raise NotImplementedError

    def join(self, named: Mapping[str, Tensor]) -> Storages:
        """Build the storages from tensors given by name."""
        raise NotImplementedError

    def whole(self, storages: Storages) -> Storages:
        """The whole tensors, as they are stored; all ranks call it."""
        return storages

    def opened(self, storages: Storages) -> tuple[Layout, Storages]:
        """What the ranks have together among which the batch is divided; these must call it."""
        return self, storages

    def counted(self, storages: Storages) -> Storages:
        """The storages that this rank has to count, so that `total` counts every value once."""
        return storages

    def outlines(self, storages: Storages) -> Storages | None:
        """Tensors of the shapes and dtypes of the whole ones; None if those are there."""
        return None

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over the ranks among which the tensors are divided."""
        return value

    def beside(self, other: Layout) -> Layout | None:
        """The layout of these tensors with others; None if they have to be stored anew."""
        return None

    def select(self, names: tuple[str, ...]) -> tuple[Layout, Pick] | None:
        """The layout of a subset, and a function that picks its storages from a tuple.

        None if a storage of the subset also holds other tensors.
        """
        if names not in self._picks:
            self._picks[names] = self._select(names)
        return self._picks[names]

    def _select(self, names: tuple[str, ...]) -> tuple[Layout, Pick] | None:
        raise NotImplementedError

    def __hash__(self) -> int:
        return self._hash

    def __deepcopy__(self, memo: Any) -> Layout:
        return self


class Separate(Layout):
    """One storage per tensor.

    >>> Separate(("w", "b")) is Separate(("w", "b"))
    True
    """

    __slots__ = ()

    def __new__(cls, names: Iterable[str], pairs: Iterable[str] = ()) -> Separate:
        key = (tuple(names), frozenset(pairs))
        known = _SEPARATE.get(key)
        if known is None:
            known = object.__new__(cls)
            known._fill(*key, key)
            _SEPARATE[key] = known
        return known

    def views(self, storages: Storages) -> Storages:
        if not self.pairs:
            return storages
        return tuple(
            [
                torch.view_as_complex(s) if name in self.pairs else s
                for name, s in zip(self.names, storages, strict=True)
            ]
        )

    def join(self, named: Mapping[str, Tensor]) -> Storages:
        if not self.pairs:
            return tuple(map(named.__getitem__, self.names))
        return tuple([stored(named[name], name in self.pairs) for name in self.names])

    def _select(self, names: tuple[str, ...]) -> tuple[Layout, Pick]:
        return Separate(names, self.pairs & set(names)), picking([self.index[n] for n in names])

    def __repr__(self) -> str:
        return f"Separate({len(self.names)} tensors)"

    def __reduce__(self) -> Any:
        return Separate, (self.names, self.pairs)


class Group(NamedTuple):
    """Tensors concatenated along one dimension into one storage.

    Their dimensions after that one are equal. They are not flattened, so that a compiler can write
    a gradient (a matrix product) directly into its slice instead of copying it. The dimension is
    counted from the end, so a leading batch dimension (vmap) changes nothing.

    Attributes:
        names: Names in storage order.
        rows: Size of each tensor along the dimension; None for a 0-d tensor.
        trailing: Number of dimensions after it.
    """

    names: tuple[str, ...]
    rows: tuple[int | None, ...]
    trailing: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate into the storage. A single tensor is returned as it is, without a copy."""
        if len(parts) == 1:
            return parts[0]
        parts = [p.unsqueeze(-1) if r is None else p for p, r in zip(parts, self.rows, strict=True)]
        return torch.cat(parts, dim=-1 - self.trailing)

    def split(self, storage: Tensor) -> Sequence[Tensor]:
        """The tensors as views, made by one split: its backward is one concatenation."""
        if len(self.names) == 1:
            return (storage,)
        sizes = [1 if rows is None else rows for rows in self.rows]
        parts = storage.split(sizes, dim=-1 - self.trailing)
        return [p.squeeze(-1) if r is None else p for p, r in zip(parts, self.rows, strict=True)]


class Packed(Layout):
    """One storage per group of tensors, so that an update needs few kernels."""

    __slots__ = ("_places", "groups")

    groups: tuple[Group, ...]

    def __new__(
        cls, groups: Iterable[Group], names: Iterable[str], pairs: Iterable[str] = ()
    ) -> Packed:
        key = (tuple(groups), tuple(names), frozenset(pairs))
        known = _PACKED.get(key)
        if known is None:
            known = object.__new__(cls)
            known._fill(*key[1:], key)
            known.groups = key[0]
            flat = {name: i for i, name in enumerate(n for group in key[0] for n in group.names)}
            known._places = [flat[name] for name in key[1]]
            _PACKED[key] = known
        return known

    def views(self, storages: Storages) -> Storages:
        found = [
            part
            for group, storage in zip(self.groups, storages, strict=True)
            for part in group.split(storage)
        ]
        views = [found[i] for i in self._places]
        if self.pairs:
            views = [
                torch.view_as_complex(v) if name in self.pairs else v
                for name, v in zip(self.names, views, strict=True)
            ]
        return tuple(views)

    def join(self, named: Mapping[str, Tensor]) -> Storages:
        return tuple(
            [
                group.join([stored(named[name], name in self.pairs) for name in group.names])
                for group in self.groups
            ]
        )

    def _select(self, names: tuple[str, ...]) -> tuple[Layout, Pick] | None:
        wanted = set(names)
        whole = [i for i, group in enumerate(self.groups) if wanted.issuperset(group.names)]
        if sum(len(self.groups[i].names) for i in whole) < len(names):
            return None  # a group is only partly wanted
        layout = Packed([self.groups[i] for i in whole], names, self.pairs & wanted)
        return layout, picking(whole)

    def __repr__(self) -> str:
        return f"Packed({len(self.names)} tensors in {len(self.groups)})"

    def __reduce__(self) -> Any:
        return Packed, (self.groups, self.names, self.pairs)


_SEPARATE: WeakValueDictionary[Any, Separate] = WeakValueDictionary()
_PACKED: WeakValueDictionary[Any, Packed] = WeakValueDictionary()


def picking(places: Sequence[int]) -> Pick:
    """A function that picks the items at `places` from a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda items: tuple([items[i] for i in places])


def stored(tensor: Tensor, pair: bool) -> Tensor:
    """The stored form of a tensor: a complex tensor as real, with a trailing dimension of 2.

    Args:
        tensor: The tensor.
        pair: Whether the layout stores it as pairs of reals.
    """
    if not pair or not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj())
