"""``Tensors``: named tensors of one kind, as one immutable value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach, pytree
from fnloop._torch.tracing import opaque
from fnloop.values.layouts import Separate
from fnloop.values.named_tensors import NamedTensors
from fnloop.values.storage_kinds import SINGLE

Scalar: TypeAlias = Any  # a number or a 0-d tensor

_HALF = frozenset((torch.float16, torch.bfloat16))


class Tensors(NamedTensors):
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

    __slots__ = ()

    # The same names with other values.

    def zeros(self) -> Tensors:
        """Zeros of the same names, shapes and layout; float32 for half precision."""
        return self._new(
            tuple(
                [
                    torch.zeros_like(s, dtype=_wide(s.dtype), requires_grad=False)
                    for s in self._storages
                ]
            )
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
        if self._fresh and self.dtypes == SINGLE and foreach.are_small(storages):
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
        quick = (
            kinds.quick and grads.kinds == kinds and all([part.kinds == kinds for part in memory])
        )
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
