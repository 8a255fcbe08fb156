"""``Tensors``: named tensors of one kind, as one immutable value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach, pytree
from fnloop._torch.fused import Kernel
from fnloop._torch.tracing import opaque
from fnloop.values.changed_kind import ChangedKindError
from fnloop.values.fused_update import FusedUpdate
from fnloop.values.layouts import Separate
from fnloop.values.looking import look
from fnloop.values.named_tensors import NamedTensors
from fnloop.values.operators import NoOperators
from fnloop.values.writes import Write

Scalar: TypeAlias = Any  # a number or a 0-d tensor

_HALF = frozenset((torch.float16, torch.bfloat16))


class Tensors(NoOperators, NamedTensors):
    """Named tensors of one kind: parameters, buffers, gradients, moments, averages.

    An immutable mapping by name with arithmetic: every method returns a new value. The layout says
    how the tensors are stored, one by one or concatenated. All methods work for every layout, and
    when compiled, vmapped or differentiated. Paths, equality, tables and checkpoints use the names;
    pytree transformations (``vmap``, ``grad``, ``tree_map``) use the storages.

    Two operands are matched by name. A scalar is a number or a 0-d tensor.

    Args:
        named: Tensors by name.

    Attributes:
        layout: How the tensors are stored; static.

    >>> w = Tensors({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor(0.0)})
    >>> w.scale(2.0)["w"], w.norm()
    (tensor([6., 8.]), tensor(5.))
    >>> w.lerp(w.zeros(), 0.5)
    Tensors(w=f32[2], b=f32[])
    """

    __slots__ = ()

    # Same names, other values.

    def zeros(self) -> Tensors:
        """Zeros with the same names, shapes and layout; float32 for half precision."""
        return self._new(
            tuple(
                [
                    torch.zeros_like(s, dtype=_wide(s.dtype), requires_grad=False)
                    for s in self._storages
                ]
            )
        )

    def wide(self) -> Tensors:
        """Convert float16 and bfloat16 to float32; other dtypes stay."""
        if self.dtypes.isdisjoint(_HALF):
            return self
        return self._new(tuple([s.to(_wide(s.dtype)) for s in self.storages]))

    def cast(self, like: Tensors) -> Tensors:
        """Convert to the dtypes of `like`, which has the same names."""
        if self.dtypes == like.dtypes and len(self.dtypes) == 1:
            return self
        self.seen = True
        storages = like._aligned(self)
        return like._new(
            tuple([s.to(o.dtype) for s, o in zip(storages, like._storages, strict=True)])
        )

    def to(self, device: torch.device | str) -> Tensors:
        """Move to a device."""
        return self._new(tuple([s.to(device) for s in self.storages]))

    def whole(self) -> Tensors:
        """The whole tensors: gathered if they are divided among ranks, which all must call it."""
        layout = self.layout
        if layout.mesh is None:
            return self
        one = Separate(layout.names, layout.pairs)
        return Tensors.of(one, layout.whole(self._storages))

    def opened(self) -> Tensors:
        """As the ranks have them together among which the batch is divided; these must call it."""
        if self.layout.mesh is None:
            return self
        layout, storages = self.layout.opened(self._storages)
        return self if layout is self.layout else Tensors.of(layout, storages)

    def clone(self) -> Tensors:
        """Copy every tensor."""
        bulk = self._bulk()
        return self.made(foreach.clone(self._storages, bulk), bulk)

    def detach(self) -> Tensors:
        """Detach from the autograd graph."""
        if self.plain and not opaque():  # under vmap tensors do not say that they are tracked
            return self
        return self._new(tuple([s.detach() for s in self.storages]))

    def gradients(self, found: Sequence[Tensor | None]) -> Tensors:
        """Put new gradients from a backward pass into this layout.

        Args:
            found: One per name, in order. Names with None are left out of the result.
        """
        if type(None) in set(map(type, found)):
            reached = {n: g for n, g in zip(self.names, found, strict=True) if g is not None}
            own = self.select(reached)
            made = (
                own.like(reached) if own.layout.mesh is None else own._new(tuple(reached.values()))
            )
        elif self.layout.mesh is not None:  # they are this rank's pieces
            made = self._new(tuple(found))  # type: ignore[arg-type]
        elif type(self.layout) is Separate and not self.layout.pairs:
            made = self._new(tuple(found))  # type: ignore[arg-type]  # none is None
            kinds = self.kinds
            made._kinds = kinds if kinds.quick else None  # as the backward pass sees to
        else:
            made = self.like(dict(zip(self.names, found, strict=True)))  # type: ignore[arg-type]
        return made

    # Elementwise arithmetic.

    def add(self, other: Tensors | Scalar) -> Tensors:
        """``self + other``, in the dtypes of `self`."""
        if isinstance(other, Tensors) and other.kinds != self.kinds:
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
        """The elementwise maximum."""
        return self._both(foreach.maximum, other)

    def lerp(self, other: Tensors, weight: Scalar) -> Tensors:
        """``self + weight * (other - self)``, in the dtypes of `self`."""
        theirs, weight = self._aligned(other), look(weight)
        bulk = self._bulk(other, weight)
        return self.made(foreach.lerp(self._storages, theirs, weight, bulk), bulk)

    def lerped(self, other: Tensors, weight: float, in_place: bool) -> Tensors:
        """`lerp`, in place if allowed: pass `in_place` only if nothing else refers to `self`."""
        theirs = self._aligned(other)
        if in_place and self._bulk(other) and len(self.dtypes | other.dtypes) == 1:
            foreach.lerp_(self._storages, theirs, weight)
            return self._new(self._storages)
        return self.lerp(other, weight)

    def alike(self, other: Tensors) -> bool:
        """Whether multi-tensor kernels can take both: equal layouts, one dtype, no transforms."""
        return (
            self.layout is other.layout
            and len(self.dtypes | other.dtypes) == 1
            and self._bulk(other)
        )

    def lerping(self, other: Tensors, weight: float) -> tuple[Tensors, Write]:
        """`lerp` in place, once the call has been called: for tensors that are `alike`."""
        new = self.made(self._storages)
        new.owned = True
        return new, foreach.lerping(self._storages, other._storages, weight)

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
        """Clamp every value to ``[low, high]``."""
        low, high = look(low), look(high)
        bulk = self._bulk(low, high)
        return self.made(foreach.clamp(self._storages, low, high, bulk), bulk)

    def where(self, flag: bool | Tensor, other: Tensors) -> Tensors:
        """`self` if `flag`, else `other`. One flag, a bool or bool[], selects for all values."""
        if flag is True or other is self:
            return self
        if flag is False:
            return other
        theirs = self._aligned(other)
        if list(map(_KIND, self._storages)) != list(map(_KIND, theirs)):
            self._refuse_changed(other)
        return self._new(tuple(foreach.select(flag, self._storages, theirs)))

    def _refuse_changed(self, other: Tensors) -> None:
        """Refuse tensors of another shape or dtype, which `where` would broadcast or promote."""
        before = dict(zip(other.names, other.peek(), strict=True))
        for name, now in zip(self.names, self.peek(), strict=True):
            if _KIND(now) != _KIND(before[name]):
                raise ChangedKindError(name, before[name], now)

    def zip_map(self, function: Callable[..., Tensor], *others: Tensors) -> Tensors:
        """Apply an elementwise `function` to the storages.

        A storage may hold many tensors, and complex tensors are stored as real pairs, so
        `function` must not depend on shapes or positions; if it does, use `map_named`.
        """
        for tensors in (self, *others):
            tensors.seen = True
        aligned = [self._aligned(other) for other in others]
        return self._new(tuple(map(function, self._storages, *aligned)))

    def map_named(self, function: Callable[..., Tensor], *others: Tensors) -> Tensors:
        """Apply `function` to each tensor separately; it may depend on the shape.

        >>> Tensors({"w": torch.ones(2, 2)}).map_named(lambda w: w.sum() * w)["w"][0]
        tensor([4., 4.])
        """
        named = [dict(other.whole().items()) for other in (self, *others)]
        return self.like({n: function(*[tensors[n] for tensors in named]) for n in self.names})

    # Reductions over all values.

    def norm(self) -> Tensor:
        """The Euclidean norm of all values together: 0-d, float32 or wider."""
        return self._norm_by(self._bulk())

    def _norm_by(self, bulk: bool) -> Tensor:
        if self._norm is not None and not self.owned:
            return self._norm
        storages = self.layout.counted(self._storages)
        if bulk and self.kinds.small:
            norm = foreach.norm_of_small(storages)
        else:
            norm = foreach.norm(storages, bulk)
        if self.layout.mesh is not None:
            norm = self.layout.total(norm.double() ** 2).sqrt().to(norm.dtype)
        # Do not cache a norm that lost its graph under no_grad, nor one of memory that a donating
        # step may overwrite.
        if bulk and self.plain and not self.owned:
            self._norm = norm
        return norm

    def dot(self, other: Tensors) -> Tensor:
        """The inner product of all values together, complex ones as pairs of numbers: float64[].

        >>> Tensors({"w": torch.ones(2)}).dot(Tensors({"w": torch.tensor([3.0, 4.0])}))
        tensor(7., dtype=torch.float64)
        """
        mine, theirs = self._storages, self._aligned(other)
        pairs = zip(self.layout.counted(mine), self.layout.counted(theirs), strict=True)
        parts = [(a.to(_wide(a.dtype)) * b).sum(dtype=torch.float64) for a, b in pairs]
        return self.layout.total(torch.stack(parts).sum() if parts else torch.zeros(()).double())

    def all_finite(self) -> Tensor:
        """Whether every value is finite: bool[]."""
        flag = self.is_finite()
        return flag if isinstance(flag, Tensor) else torch.full((), flag, device=self.device)

    def is_finite(self) -> bool | Tensor:
        """Like `all_finite`, but a Python bool on the CPU outside of transforms."""
        storages, bulk = self._storages, self._bulk()
        if not bulk or not storages or not storages[0].is_cpu:
            return look(self._all(foreach.all_finite(storages)))
        # A finite sum or norm means finite values. It may overflow, so otherwise check the values.
        if math.isfinite(self._sum_or_norm().item()):
            return True
        return bool(self._all(foreach.all_finite([s.detach() for s in storages])))

    def _sum_or_norm(self) -> Tensor:
        """The norm; of few values the sum, as squares may be denormal, which is slow."""
        if self.kinds.small and self._norm is None and self.layout.mesh is None:
            return foreach.sum_of_small(self._storages)
        return self._norm_by(True)

    def _all(self, flag: Tensor) -> Tensor:
        """Whether a flag is true on all ranks that have a part of the tensors."""
        if self.layout.mesh is None:
            return flag
        return self.layout.total((~flag).to(torch.float32)) == 0

    def fused(
        self,
        kernel: Callable[..., Kernel | None],
        grads: Tensors,
        memory: list[Tensors],
        *arguments: Any,
        remember: Callable[..., Any],
        **hyperparameters: Any,
    ) -> FusedUpdate | None:
        """An update of parameters (`self`) and memory by a fused optimizer kernel.

        Args:
            kernel: One of `fnloop._torch.fused`.
            grads: Gradients of the same names.
            memory: The parts of the optimizer's memory that the kernel changes.
            *arguments: What the kernel takes after them.
            remember: Makes the optimizer's new memory of the new parts.
            **hyperparameters: The kernel's.

        Returns:
            The update, which has not been made yet; None if the kernel cannot be used.
        """
        given = [self, grads, *memory]
        facts = list(map(_FACTS, given))
        kinds = self.kinds
        alike = facts.count((True, kinds, self.layout)) == len(facts)
        if not alike and torch.is_grad_enabled() and not all([part.plain for part in given]):
            return None
        quick = kinds.quick and (alike or all([part.kinds == kinds for part in given]))
        params, of_grads, *parts = map(_STORAGES if alike else self._aligned, given)
        made = kernel(params, of_grads, parts, *arguments, quick, **hyperparameters)
        return None if made is None else FusedUpdate(made, [self, *memory], remember)

    # Dispatch: per storage, with multi-tensor (foreach) kernels where possible.

    def _bulk(self, *others: Any) -> bool:
        """Whether multi-tensor (foreach) kernels may be used; they are not differentiable."""
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

    def _both(self, kernel: Any, other: Any) -> Tensors:
        theirs = self._aligned(other) if isinstance(other, Tensors) else look(other)
        bulk = self._bulk(other if isinstance(other, Tensors) else theirs)
        if bulk and isinstance(theirs, Tensor):  # foreach would promote 0-d operands on a GPU
            bulk = False
        new = self.made(kernel(self._storages, theirs, bulk), bulk)
        if isinstance(other, Tensors) and new._kinds is not None and other.kinds != new._kinds:
            new._kinds = None  # the dtypes may have been promoted
        return new

    def _each(self, kernel: Any) -> Tensors:
        bulk = self._bulk()
        return self.made(kernel(self._storages, bulk), bulk)

    def made(self, storages: Any, bulk: bool = True) -> Tensors:
        """Wrap a kernel's results; foreach kernels give tensors without a graph."""
        new = self._new(tuple(storages))
        if bulk:
            new._plain = True
            kinds = self._kinds
            if kinds is not None and kinds.quick:
                new._kinds = kinds
        return new


_KIND = attrgetter("shape", "dtype")
_FACTS, _STORAGES = attrgetter("_plain", "_kinds", "layout"), attrgetter("_storages")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


pytree.register_node(
    Tensors,
    children=lambda tensors: tensors.storages,
    static=lambda tensors: tensors.layout,
    build=Tensors.of,
    entries=lambda tensors: (
        tensors.names
        if len(tensors.names) == len(tensors.storages)
        else tuple(range(len(tensors.storages)))
    ),
)
