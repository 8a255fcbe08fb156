"""``Tensors``: named tensors of one kind, as one immutable value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach, pytree
from fnloop._torch.tracing import opaque
from fnloop.trees.equal import tree_equal
from fnloop.trees.named import Named
from fnloop.trees.show import short
from fnloop.values.layouts import Layout, Separate, Storages, stored

Scalar: TypeAlias = Any  # a number or a 0-d tensor

_FACTS = attrgetter("shape", "dtype", "is_cpu", "layout")
_HALF = frozenset((torch.float16, torch.bfloat16))
_SINGLE = frozenset((torch.float32,))
_DOUBLE = frozenset((torch.float64,))


class Tensors(Mapping[str, Tensor]):
    """Named tensors of one kind: parameters, buffers, gradients, moments, averages.

    A mapping by name, and a value with arithmetic: nothing changes it, every method returns a new
    one. How the tensors are stored, one by one or many in a few long ones, is its layout's
    business: whatever is written in these methods is right for all layouts, compiled, vmapped and
    differentiated too. People see names: paths, equality, tables and checkpoints go by them.
    Transformations (``vmap``, ``grad``, ``tree_map``) see the storages.

    Where a method takes other tensors, they go by name. A scalar is a number or a 0-d tensor.

    Args:
        named: Tensors by name.

    Attributes:
        layout: How they are stored; static.

    >>> w = Tensors({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor(0.0)})
    >>> w.scale(2.0)["w"], w.norm()
    (tensor([6., 8.]), tensor(5.))
    >>> w.lerp(w.zeros(), 0.5)
    Tensors(w=f32[2], b=f32[])
    """

    __slots__ = ("__weakref__", "_fresh", "_kinds", "_norm", "_plain", "_storages", "_views", "layout", "owned", "seen")

    layout: Layout
    owned: bool
    """Whether its memory was made for it alone, so that a step that donates may write over it."""
    seen: bool
    """Whether somebody may have taken a tensor out of it since then."""
    _storages: Storages
    _views: Storages | None
    _kinds: Kinds | None
    _norm: Tensor | None
    _plain: bool | None  # whether no storage requires gradients, if that is known
    _fresh: bool  # made by a backward pass: its own values may be written into it again

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        pairs = [name for name, t in named.items() if _is_complex(t)]
        storages = tuple([stored(t, True) for t in named.values()] if pairs else named.values())
        _set(self, Separate(named, pairs), storages)

    @classmethod
    def of(cls, layout: Layout, storages: Iterable[Any], views: Storages | None = None) -> Tensors:
        """Tensors in a layout, from their storages.

        Args:
            layout: The layout.
            storages: As it wants them; not checked, since transformations put other things there.
            views: The tensors by name, where they are there already.
        """
        self = object.__new__(cls)
        _set(self, layout, tuple(storages))
        self._views = views
        return self

    # What people see: a mapping by name.

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
        self.seen = True
        return self.peek()

    def items(self) -> tuple[tuple[str, Tensor], ...]:  # type: ignore[override]  # pyright: ignore
        return tuple(zip(self.layout.names, self.values(), strict=True))

    @property
    def storages(self) -> Storages:
        """What it is stored in."""
        self.seen = True
        return self._storages

    def peek_storages(self) -> Storages:
        """What it is stored in, for one who keeps nothing of it."""
        return self._storages

    def settle(self, layout: Layout) -> None:
        """Move to another layout, in place: only for tensors that nobody has seen yet."""
        if layout is not self.layout:
            named = dict(zip(self.names, self.peek(), strict=True))
            _set(self, layout, layout.join(named))
        self.owned = True

    def peek(self) -> Storages:
        """The tensors in order, for one who keeps none of them."""
        if self._views is not None:
            return self._views
        views = self.layout.views(self._storages)
        # A view that was made while something transforms must not outlive that, nor one without
        # its derivative, as under no_grad.
        if views is self._storages or (self.plain and not opaque()):
            self._views = views
        return views

    def __eq__(self, other: object) -> bool:
        """Whether names and bits are the same, in whichever layout."""
        return isinstance(other, Tensors) and tree_equal(self, other)

    def __hash__(self) -> int:
        return hash(self.layout.names)

    def __repr__(self) -> str:
        shown = [f"{name}={short(t)}" for name, t in list(self.items())[:6]]
        more = [f"{len(self) - 6} more"] if len(self) > 6 else []
        return f"Tensors({', '.join([*shown, *more])})"

    def __tree_named__(self) -> Named:
        return Named(self.names, self.values(), self.like)

    def __reduce__(self) -> Any:
        return Tensors.of, (self.layout, self.storages)

    # Facts.

    @property
    def device(self) -> torch.device | None:
        """Of the tensors; None if there are none."""
        return self._storages[0].device if self._storages else None

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Of the storages: the reals of complex tensors."""
        return self.kinds.dtypes

    @property
    def kinds(self) -> Kinds:
        """What kernels ask of the storages."""
        if self._kinds is None:
            self._kinds = Kinds.of(self._storages)
        return self._kinds

    @property
    def plain(self) -> bool:
        """Whether autograd has nothing to do with them."""
        if self._plain is None:
            self._plain = not any([s.requires_grad for s in self._storages])
        return self._plain

    # Other names, layouts, dtypes.

    def gradients(self, found: Sequence[Tensor | None]) -> Tensors:
        """Gradients with respect to these, which a backward pass has just made, in this layout.

        Args:
            found: In the order of the names; those that are None are left out.
        """
        if any([g is None for g in found]):
            reached = {n: g for n, g in zip(self.names, found, strict=True) if g is not None}
            made = self.select(reached).like(reached)
        elif type(self.layout) is Separate and not self.layout.pairs:
            made = self._new(tuple(found))  # type: ignore[arg-type]  # none is None
        else:
            made = self.like(dict(zip(self.names, found, strict=True)))  # type: ignore[arg-type]
        made._fresh = True
        return made

    def like(self, named: Mapping[str, Tensor]) -> Tensors:
        """Other tensors in this layout, from a mapping with at least its names.

        Raises:
            KeyError: A name is missing.
        """
        if isinstance(named, Tensors) and named.layout is self.layout:
            return named
        missing = [name for name in self.names if name not in named]
        if missing:
            raise KeyError(f"There is no tensor for {', '.join(missing[:8])}.")
        if isinstance(named, Tensors):  # `join` takes some tensors as they are
            named = dict(named.items())
        return Tensors.of(self.layout, self.layout.join(named))

    def select(self, names: Iterable[str]) -> Tensors:
        """Those of `names`, in that order.

        >>> Tensors({"w": torch.ones(2), "b": torch.ones(1)}).select(["b"])
        Tensors(b=f32[1])
        """
        wanted = names.names if isinstance(names, Tensors) else tuple(names)
        if wanted == self.layout.names:
            return self
        unknown = [name for name in wanted if name not in self.layout.index]
        if unknown:
            raise KeyError(f"There is no tensor {unknown[0]!r}.")
        self.seen = True
        found = self.layout.select(wanted)
        if found is None:
            views = self.peek()
            return Tensors({name: views[self.layout.index[name]] for name in wanted})
        layout, pick = found
        new = Tensors.of(layout, pick(self._storages))
        new._plain = self._plain
        return new

    def updated(self, new: Tensors) -> Tensors:
        """These tensors, but those of `new` where it has them."""
        if new.layout is self.layout or new.names == self.names:
            return new if new.layout is self.layout else self.like(new)
        if not new:
            return self
        mine, theirs = self.layout.select(new.names), new.layout
        if mine is not None and mine[0] is theirs:  # whole storages are replaced
            places = mine[1](tuple(range(len(self._storages))))  # type: ignore[arg-type]
            storages = list(self._storages)
            for place, storage in zip(places, new._storages, strict=True):
                storages[place] = storage  # type: ignore[call-overload]
            self.seen = new.seen = True
            return Tensors.of(self.layout, storages)
        named = dict(zip(self.names, self.values(), strict=True))
        return self.like({**named, **dict(new.items())})

    def zeros(self) -> Tensors:
        """Zeros of the same names, shapes and layout; float32 for half precision."""
        return self._new(
            tuple([torch.zeros_like(s, dtype=_wide(s.dtype), requires_grad=False) for s in self._storages])
        )

    def wide(self) -> Tensors:
        """Half precision as float32, everything else as it is."""
        if self.dtypes.isdisjoint(_HALF):
            return self
        return self._new(tuple([s.to(_wide(s.dtype)) for s in self.storages]))

    def cast(self, like: Tensors) -> Tensors:
        """In the dtypes of `like`."""
        if self.dtypes == like.dtypes and len(self.dtypes) == 1:
            return self
        self.seen = True
        storages = like._aligned(self)
        return like._new(
            tuple([s.to(o.dtype) for s, o in zip(storages, like._storages, strict=True)])
        )

    def to(self, device: torch.device | str) -> Tensors:
        """On another device."""
        return self._new(tuple([s.to(device) for s in self.storages]))

    def clone(self) -> Tensors:
        """A copy."""
        return self._bulky(foreach.clone(self._storages, self._bulk()))

    def detach(self) -> Tensors:
        """Without their derivatives."""
        return self if self.plain else self._new(tuple([s.detach() for s in self.storages]))

    # Arithmetic, value by value.

    def add(self, other: Tensors | Scalar) -> Tensors:
        """``self + other``, in these dtypes."""
        if isinstance(other, Tensors) and other.dtypes != self.dtypes:
            return self.wide()._both(foreach.add, other).cast(self)
        return self._both(foreach.add, other)

    def sub(self, other: Tensors | Scalar) -> Tensors:
        """``self - other``."""
        return self._both(foreach.sub, other)

    def mul(self, other: Tensors) -> Tensors:
        """``self * other``."""
        return self._both(foreach.mul, other)

    def scale(self, factor: Scalar) -> Tensors:
        """``factor * self``."""
        return self._both(foreach.mul, factor)

    def div(self, other: Tensors | Scalar) -> Tensors:
        """``self / other``."""
        return self._both(foreach.div, other)

    def maximum(self, other: Tensors) -> Tensors:
        """The larger of each pair of values."""
        return self._both(foreach.maximum, other)

    def lerp(self, other: Tensors, weight: Scalar) -> Tensors:
        """``self + weight * (other - self)``, in these dtypes."""
        theirs, weight = self._aligned(other), self._scalar(weight)
        bulk = self._bulk(other, weight)
        return self._bulky(foreach.lerp(self._storages, theirs, weight, bulk), bulk)

    def lerped(self, other: Tensors, weight: float, own: bool) -> Tensors:
        """`lerp`, written over `self` if that is `own`: if nobody else holds it, now or later."""
        theirs = self._aligned(other)
        if own and self._bulk(other) and len(self.dtypes | other.dtypes) == 1:
            foreach.lerp_(self._storages, theirs, weight)
            self._norm = None
            return self
        return self.lerp(other, weight)

    def sqrt(self) -> Tensors:
        """Square roots, with a derivative of zero at zero."""
        return self._each(foreach.sqrt)

    def abs(self) -> Tensors:
        """Absolute values."""
        return self._each(foreach.abs)

    def sign(self) -> Tensors:
        """Signs."""
        return self._each(foreach.sign)

    def clamp(self, low: Scalar, high: Scalar) -> Tensors:
        """Values cut to ``[low, high]``."""
        low, high = self._scalar(low), self._scalar(high)
        bulk = self._bulk(low, high)
        return self._bulky(foreach.clamp(self._storages, low, high, bulk), bulk)

    def where(self, flag: bool | Tensor, other: Tensors) -> Tensors:
        """`self` if `flag`, else `other`: one flag, bool or bool[], for all values."""
        if flag is True or other is self:
            return self
        if flag is False:
            return other
        return self._new(tuple(foreach.select(flag, self._storages, self._aligned(other))))

    def zip_map(self, function: Callable[..., Tensor], *others: Tensors) -> Tensors:
        """`function` of tensors, value by value.

        It must treat every value alike, since it may be given many tensors as one, and the real and
        imaginary parts of complex ones. Where shapes matter, see `map_named`.
        """
        for tensors in (self, *others):
            tensors.seen = True
        aligned = [self._aligned(other) for other in others]
        return self._new(tuple(map(function, self._storages, *aligned)))

    def map_named(self, function: Callable[..., Tensor], *others: Tensors) -> Tensors:
        """`function` of each tensor by itself, for what depends on its shape.

        >>> Tensors({"w": torch.ones(2, 2)}).map_named(lambda w: w.sum() * w)["w"][0]
        tensor([4., 4.])
        """
        named = [dict(other.items()) for other in (self, *others)]
        return self.like({n: function(*[tensors[n] for tensors in named]) for n in self.names})

    # Over all values together.

    def norm(self) -> Tensor:
        """The Euclidean norm of all values together; float32 or wider, 0-d."""
        if self._norm is not None:
            return self._norm
        bulk = self._bulk()
        norm = foreach.norm(self._storages, bulk)
        if bulk and self.plain:  # under no_grad, the norm is without its derivative
            self._norm = norm
        return norm

    def all_finite(self) -> Tensor:
        """bool[]: whether no value is infinite or nan."""
        flag = self.is_finite()
        return flag if isinstance(flag, Tensor) else torch.full((), flag, device=self.device)

    def is_finite(self) -> bool | Tensor:
        """The same; a bool where values may be looked at without waiting."""
        storages = self._storages
        if not self._bulk() or not storages or not storages[0].is_cpu:
            return foreach.all_finite(storages)
        if self._fresh and self.dtypes == _SINGLE and foreach.are_small(storages):
            return foreach.all_finite_(storages)
        # What is not finite is in the norm too; only one that overflows says nothing.
        if math.isfinite(self.norm().item()):
            return True
        return bool(foreach.all_finite([s.detach() for s in storages]))

    def fused(
        self,
        kernel: Callable[..., list[list[Tensor]] | None],
        grads: Tensors,
        memory: list[Tensors],
        *arguments: Any,
        **hyperparameters: Any,
    ) -> list[Tensors] | None:
        """What a fused optimizer kernel makes of parameters, gradients and memory.

        The new parameters, then each part of the new memory; None where it cannot be used.
        """
        if torch.is_grad_enabled() and not all([part.plain for part in (self, grads, *memory)]):
            return None
        parts = [self._aligned(part) for part in memory]
        kinds = self.kinds
        quick = kinds.quick and grads.kinds == kinds and all([part.kinds == kinds for part in memory])
        made = kernel(
            self._storages, self._aligned(grads), parts, *arguments, quick, **hyperparameters
        )
        return None if made is None else [self._bulky(storages) for storages in made]

    # How it is done: by storages, in bulk where that is possible.

    def _bulk(self, *others: Any) -> bool:
        """Whether kernels for many tensors at once may be used, which know no derivative."""
        if opaque():
            return False
        if not torch.is_grad_enabled():
            return True
        if not self.plain:
            return False
        for other in others:
            if isinstance(other, Tensors):
                if not other.plain:
                    return False
            elif isinstance(other, Tensor) and other.requires_grad:
                return False
        return True

    def _aligned(self, other: Tensors) -> Storages:
        """The storages of `other` in this layout."""
        return other._storages if other.layout is self.layout else self.like(other)._storages

    def _scalar(self, value: Scalar) -> Scalar:
        """A 0-d tensor as a number where it may be looked at: kernels want it so."""
        if not isinstance(value, Tensor) or not value.is_cpu or value.ndim or opaque():
            return value
        return value if value.requires_grad and torch.is_grad_enabled() else value.item()

    def _both(self, kernel: Any, other: Any) -> Tensors:
        theirs = self._aligned(other) if isinstance(other, Tensors) else self._scalar(other)
        bulk = self._bulk(other if isinstance(other, Tensors) else theirs)
        if bulk and isinstance(theirs, Tensor):  # on an accelerator: it would widen 0-d tensors
            bulk = False
        return self._bulky(kernel(self._storages, theirs, bulk), bulk)

    def _each(self, kernel: Any) -> Tensors:
        bulk = self._bulk()
        return self._bulky(kernel(self._storages, bulk), bulk)

    def _bulky(self, storages: Any, bulk: bool = True) -> Tensors:
        """What a kernel has made; in bulk, without derivatives."""
        new = self._new(tuple(storages))
        if bulk:
            new._plain, new._kinds = True, self._kinds
        return new

    def _new(self, storages: Storages) -> Tensors:
        new = object.__new__(Tensors)
        _set(new, self.layout, storages)
        return new


class Kinds:
    """Shapes, dtypes and places of storages, found once for a value and what is made of it.

    Attributes:
        dtypes: Of the storages.
        quick: Whether they are contiguous, on the CPU, and of one dtype, float32 or float64.
    """

    __slots__ = ("_facts", "dtypes", "quick")

    @classmethod
    def of(cls, storages: Storages) -> Kinds:
        """Those of some storages."""
        self = object.__new__(cls)
        self._facts = list(map(_FACTS, storages))
        self.dtypes = frozenset([facts[1] for facts in self._facts])
        self.quick = (
            (self.dtypes == _SINGLE or self.dtypes == _DOUBLE)
            and all([facts[2] and facts[3] is torch.strided for facts in self._facts])
            and all(map(Tensor.is_contiguous, storages))
        )
        return self

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Kinds) and self._facts == other._facts)

    def __hash__(self) -> int:
        return hash(self.dtypes)


def _set(self: Tensors, layout: Layout, storages: Storages) -> None:
    self.layout, self._storages, self._views, self._norm = layout, storages, None, None
    self._plain, self._kinds, self._fresh = None, None, False
    self.seen = self.owned = False


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


pytree.register_node(
    Tensors,
    children=lambda tensors: tensors.storages,
    static=lambda tensors: tensors.layout,
    build=Tensors.of,
    entries=lambda tensors: tensors.names
    if len(tensors.names) == len(tensors.storages)
    else tuple(range(len(tensors.storages))),
)
