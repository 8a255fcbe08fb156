"""Named tensors as a mapping by name, independent of the layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping
from operator import attrgetter
from typing import Any, Self

import torch
from torch import Tensor

from fnloop._torch.tracing import opaque
from fnloop.trees.equal import tree_equal
from fnloop.trees.named import Named
from fnloop.trees.show import short
from fnloop.values.layouts import Layout, Separate, Storages, stored
from fnloop.values.storage_kinds import Kinds


class NamedTensors(Mapping[str, Tensor]):
    """`Tensors` without the arithmetic: names, storages and ownership.

    Attributes:
        layout: How the tensors are stored; static.
    """

    __slots__ = (
        "__weakref__",
        "_kinds",
        "_norm",
        "_plain",
        "_storages",
        "_views",
        "layout",
        "owned",
        "seen",
    )

    layout: Layout
    owned: bool
    """Whether its memory was allocated for it alone, so that a donating step may overwrite it."""
    seen: bool
    """Whether the storages or views may have been handed out since then."""
    _storages: Storages
    _views: Storages | None
    _kinds: Kinds | None
    _norm: Tensor | None
    _plain: bool | None  # whether no storage requires gradients; None if not known yet

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        pairs = [name for name, t in named.items() if _is_complex(t)]
        storages = tuple([stored(t, True) for t in named.values()] if pairs else named.values())
        _set(self, Separate(named, pairs), storages)

    @classmethod
    def of(cls, layout: Layout, storages: Iterable[Any], views: Storages | None = None) -> Self:
        """Build from a layout and its storages.

        Args:
            layout: The layout.
            storages: One per storage of the layout; not checked, since pytree transformations put
                arbitrary objects there.
            views: The tensors in the order of the names, if the caller has them already.
        """
        self = object.__new__(cls)
        _set(self, layout, tuple(storages))
        self._views = views
        return self

    # The mapping by name.

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return self.layout.names

    def __getitem__(self, name: str) -> Tensor:
        try:
            place = self.layout.index[name]
        except KeyError:
            known = ", ".join(self.names[:8]) + (", ..." if len(self) > 8 else "")
            raise KeyError(f"There is no tensor {name!r}; there are: {known or 'none'}.") from None
        return self.values()[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.index

    def keys(self) -> KeysView[str]:
        return self.layout.index.keys()

    def values(self) -> Storages:  # type: ignore[override]  # pyright: ignore
        if self.layout.mesh is not None:
            ranks = self.layout.mesh.everyone.data
            raise RuntimeError(
                f"These tensors are divided among {ranks} ranks, and this one has "
                "only a piece of each. To read whole tensors, call fl.gather(state) on every rank."
            )
        self.seen = True
        return self.peek()

    def items(self) -> tuple[tuple[str, Tensor], ...]:  # type: ignore[override]  # pyright: ignore
        return tuple(zip(self.layout.names, self.values(), strict=True))

    def outlines(self) -> tuple[tuple[str, Tensor], ...]:
        """Names, each with a tensor whose shape and dtype count, but not its values."""
        found = self.layout.outlines(self._storages)
        return self.items() if found is None else tuple(zip(self.names, found, strict=True))

    @property
    def storages(self) -> Storages:
        """The storages."""
        self.seen = True
        return self._storages

    def peek_storages(self) -> Storages:
        """The storages, for a caller that keeps no reference to them."""
        return self._storages

    def repack(self, layout: Layout) -> None:
        """Move to another layout, in place. Only for values that have not been handed out."""
        if layout is not self.layout:
            named = dict(zip(self.names, self.peek(), strict=True))
            _set(self, layout, layout.join(named))
        self.owned = True

    def peek(self) -> Storages:
        """The tensors in order, for a caller that keeps no reference to them."""
        if self._views is not None:
            return self._views
        views = self.layout.views(self._storages)
        # Do not cache views made under a transform (they must not outlive it), nor views that
        # lost their graph under no_grad.
        if views is self._storages or (self.plain and not opaque()):
            self._views = views
        return views

    def __eq__(self, other: object) -> bool:
        """Whether names and bits are equal; the layouts may differ."""
        return isinstance(other, NamedTensors) and tree_equal(self, other)

    def __hash__(self) -> int:
        return hash(self.layout.names)

    def __repr__(self) -> str:
        shown = [f"{name}={short(t)}" for name, t in list(self.items())[:6]]
        more = [f"{len(self) - 6} more"] if len(self) > 6 else []
        return f"{type(self).__name__}({', '.join([*shown, *more])})"

    def __tree_named__(self) -> Named:
        # Not the bound method `like`, which would hold these tensors as long as their outline is.
        layout, of = self.layout, type(self).of
        if layout.mesh is not None:  # by name, what this rank has of each
            return Named(
                self.names,
                self.storages,
                lambda named: of(layout, [named[n] for n in layout.names]),
            )
        return Named(self.names, self.values(), lambda named: of(layout, layout.join(named)))

    def __reduce__(self) -> Any:
        return type(self).of, (self.layout, self.storages)

    # Properties.

    @property
    def device(self) -> torch.device | None:
        """The device of the first tensor; None if there is no tensor."""
        return self._storages[0].device if self._storages else None

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The dtypes of the storages; for a complex tensor, its real dtype."""
        return self.kinds.dtypes

    @property
    def kinds(self) -> Kinds:
        """Shapes, dtypes and placement of the storages, cached."""
        if self._kinds is None:
            self._kinds = Kinds.of(self._storages)
        return self._kinds

    @property
    def plain(self) -> bool:
        """Whether no storage requires gradients."""
        if self._plain is None:
            self._plain = not any(map(_REQUIRES_GRAD, self._storages))
        return self._plain

    def shapes(self) -> list[torch.Size]:
        """The shapes of the whole tensors, in order."""
        found = self.layout.outlines(self._storages)
        return list(map(_SHAPE, self.peek() if found is None else found))

    def shaped_like(self, other: Self) -> bool:
        """Whether the shapes are those of `other`, which has the same names in the same order."""
        if self.layout is not other.layout:
            return self.shapes() == other.shapes()
        if self._kinds is not None and self._kinds is other._kinds:  # as in most steps
            return True
        return list(map(_SHAPE, self._storages)) == list(map(_SHAPE, other._storages))

    # Other names or values.

    def like(self, named: Mapping[str, Tensor]) -> Self:
        """Put the tensors of a mapping into this layout. Extra names are ignored.

        Raises:
            KeyError: A name is missing.
        """
        if isinstance(named, NamedTensors) and named.layout is self.layout:
            return named  # type: ignore[return-value]  # there is only one subclass
        if not self.keys() <= named.keys():
            missing = [name for name in self.names if name not in named]
            raise KeyError(
                f"There is no tensor for {', '.join(missing[:8])}. Usual cause: gradients have "
                "none for parameters that are frozen or that the loss does not reach. Take "
                "tensors.select(grads.mean), and put the result back by tensors.updated(...)."
            )
        if isinstance(named, NamedTensors) and named.layout.mesh is not None:
            pieces = named.select(self.names)
            if pieces.layout is self.layout:  # they were in another order
                return pieces  # type: ignore[return-value]
        if isinstance(named, NamedTensors):  # `join` may alias its inputs: mark them as seen
            named = dict(named.items())
        return self.of(self.layout, self.layout.join(named))

    def select(self, names: Iterable[str]) -> Self:
        """The tensors `names`, in that order.

        Raises:
            KeyError: A name is unknown.

        >>> from fnloop.values.tensors import Tensors
        >>> Tensors({"w": torch.ones(2), "b": torch.ones(1)}).select(["b"])
        Tensors(b=f32[1])
        """
        wanted = names.layout.names if type(names) is type(self) else tuple(names)
        if wanted == self.layout.names:
            return self
        unknown = [name for name in wanted if name not in self.layout.index]
        if unknown:
            raise KeyError(f"There is no tensor {unknown[0]!r}.")
        self.seen = True
        found = self.layout.select(wanted)
        if found is None:
            views = self.peek()
            return type(self)({name: views[self.layout.index[name]] for name in wanted})
        layout, pick = found
        new = self.of(layout, pick(self._storages))
        new._plain = self._plain
        return new

    def updated(self, new: Self) -> Self:
        """These tensors, with those of `new` in place of the ones of the same name."""
        if new.layout is self.layout or new.names == self.names:
            return new if new.layout is self.layout else self.like(new)
        if not new:
            return self
        mine, theirs = self.layout.select(new.names), new.layout
        if mine is not None and mine[0] is theirs:  # replace whole storages
            places = mine[1](tuple(range(len(self._storages))))  # type: ignore[arg-type]
            storages = list(self._storages)
            for place, storage in zip(places, new._storages, strict=True):
                storages[place] = storage  # type: ignore[call-overload]
            self.seen = new.seen = True
            return self.of(self.layout, storages)
        named = dict(zip(self.names, self.values(), strict=True))
        return self.like({**named, **dict(new.items())})

    def beside(self, other: Self) -> Self:
        """These tensors, and after them those of `other`, which have other names."""
        layout = self.layout.beside(other.layout)
        if layout is None:
            return type(self)({**dict(self.items()), **dict(other.items())})
        return self.of(layout, (*self.storages, *other.storages))

    def _aligned(self, other: NamedTensors) -> Storages:
        """The storages of `other` in this layout."""
        return other._storages if other.layout is self.layout else self.like(other)._storages

    def _new(self, storages: Storages) -> Self:
        """Build from other storages of this layout."""
        new = object.__new__(type(self))
        _set(new, self.layout, storages)
        return new


_REQUIRES_GRAD, _SHAPE = attrgetter("requires_grad"), attrgetter("shape")


def _set(self: NamedTensors, layout: Layout, storages: Storages) -> None:
    self.layout = layout
    self._storages = storages
    self._views = self._norm = self._plain = self._kinds = None
    self.seen = self.owned = False


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()
