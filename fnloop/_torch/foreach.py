"""Arithmetic over lists of tensors, by multi-tensor (foreach) kernels or one tensor at a time.

The ``torch._foreach_*`` functions have no batching rule, and their backward pass fails if only a
scalar operand requires gradients. The caller says by `bulk` whether to use them. Functions work out
of place, unless their name ends in an underscore.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch.tracing import recording

Storages: TypeAlias = tuple[Tensor, ...] | list[Tensor]
Scalar: TypeAlias = Any  # a number or a 0-d tensor

_DTYPE = attrgetter("dtype")
_EXACT = frozenset((torch.float32, torch.float64))
_flatten: Any = torch._utils._flatten_dense_tensors  # pyright: ignore


def add(xs: Storages, ys: Any, bulk: bool) -> Storages:
    """``x + y``; `ys` is a list or one scalar."""
    return _both(torch._foreach_add, torch.add, xs, ys, bulk)


def sub(xs: Storages, ys: Any, bulk: bool) -> Storages:
    """``x - y``; `ys` is a list or one scalar."""
    return _both(torch._foreach_sub, torch.sub, xs, ys, bulk)


def mul(xs: Storages, ys: Any, bulk: bool) -> Storages:
    """``x * y``; `ys` is a list or one scalar."""
    return _both(torch._foreach_mul, torch.mul, xs, _boxed(ys, xs, bulk), bulk)


def div(xs: Storages, ys: Any, bulk: bool) -> Storages:
    """``x / y``; `ys` is a list or one scalar."""
    return _both(torch._foreach_div, torch.div, xs, _boxed(ys, xs, bulk), bulk)


def maximum(xs: Storages, ys: Any, bulk: bool) -> Storages:
    """The elementwise maximum; `ys` is a list or one scalar."""
    return _both(torch._foreach_maximum, torch.maximum, xs, ys, bulk)


def sqrt(xs: Storages, bulk: bool) -> Storages:
    """Square roots, with a derivative of zero at zero.

    The second moment of a gradient that is always zero is zero, with derivative zero. The chain
    rule would multiply that by the root's infinite derivative, which gives nan.
    """
    if bulk:
        return torch._foreach_sqrt(xs) if xs else ()
    if recording() is not None:  # a compiled step is never differentiated
        return [x.sqrt() for x in xs]
    zeros = [x == 0 for x in xs]
    roots = [torch.where(z, 1.0, x).sqrt() for z, x in zip(zeros, xs, strict=True)]
    return [torch.where(z, 0.0, r) for z, r in zip(zeros, roots, strict=True)]


def sign(xs: Storages, bulk: bool) -> Storages:
    """Signs."""
    return _each(torch._foreach_sign, torch.sign, xs, bulk)


def abs(xs: Storages, bulk: bool) -> Storages:
    """Absolute values."""
    return _each(torch._foreach_abs, torch.abs, xs, bulk)


def clone(xs: Storages, bulk: bool) -> Storages:
    """Copies."""
    return _each(torch._foreach_clone, torch.clone, xs, bulk)


def lerp(xs: Storages, ys: Storages, weight: Scalar, bulk: bool) -> Storages:
    """``x + weight * (y - x)``, in the dtype of `x`."""
    if bulk and not isinstance(weight, Tensor) and _same_dtypes(xs, ys):
        return torch._foreach_lerp(xs, ys, weight) if xs else ()
    return [torch.lerp(x, y.to(x.dtype), _like(weight, x)) for x, y in zip(xs, ys, strict=True)]


def lerp_(xs: Storages, ys: Storages, weight: float) -> None:
    """`lerp` in place. All tensors have one dtype; nothing else may refer to those of `xs`."""
    torch._foreach_lerp_(xs, ys, weight)


def lerping(xs: Storages, ys: Storages, weight: float) -> Callable[[], None]:
    """The call of `lerp_`, without any bytecode in it."""
    return functools.partial(torch._foreach_lerp_, xs, ys, weight)


def clamp(xs: Storages, low: Scalar, high: Scalar, bulk: bool) -> Storages:
    """Clamp every value to ``[low, high]``."""
    if not bulk or isinstance(low, Tensor) or isinstance(high, Tensor):
        return [x.clamp(_like(low, x), _like(high, x)) for x in xs]
    return torch._foreach_clamp_max(torch._foreach_clamp_min(xs, low), high) if xs else ()


def norm(xs: Storages, bulk: bool) -> Tensor:
    """The Euclidean norm of all values together: 0-d, float32 or wider."""
    if not xs:
        return torch.zeros((), device="cpu")
    dtypes = set(map(_DTYPE, xs))
    if not bulk or not dtypes <= _EXACT:
        norms = [torch.linalg.vector_norm(x, dtype=_wide(x)) for x in xs]
        return torch.linalg.vector_norm(torch.stack([n.to(_widest(norms)) for n in norms]))
    norms = torch._foreach_norm(xs)
    return torch.linalg.vector_norm(torch.stack([n.to(_widest(norms)) for n in norms]))


def norm_of_small(xs: Storages) -> Tensor:
    """`norm` for tensors of one dtype, float32 or float64: faster if they have few values."""
    return torch.linalg.vector_norm(_flatten(xs))


def sum_of_small(xs: Storages) -> Tensor:
    """The sum of all values of tensors of one dtype, if they have few: 0-d, in their dtype."""
    return _flatten(xs).sum()


def all_finite(xs: Storages) -> Tensor:
    """Whether every value is finite: bool[]."""
    if not xs:
        return torch.ones((), dtype=torch.bool, device="cpu")
    # x - x is nan if x is not finite, else 0. Inductor vectorizes this sum, but not a reduction of
    # isfinite; it would simplify 0 * x away.
    return torch.stack([(x - x).sum().to(torch.float32) for x in xs]).sum() == 0


def select(condition: Tensor, xs: Storages, ys: Storages) -> Storages:
    """`xs` if the bool[] `condition` is true, else `ys`."""
    return [torch.where(condition, x, y) for x, y in zip(xs, ys, strict=True)]


def _each(many: Callable[..., Any], one: Callable[..., Any], xs: Storages, bulk: bool) -> Storages:
    if not bulk:
        return [one(x) for x in xs]
    return many(xs) if xs else ()


def _both(
    many: Callable[..., Any], one: Callable[..., Any], xs: Storages, ys: Any, bulk: bool
) -> Storages:
    if not bulk:
        return [one(x, y) for x, y in zip(xs, _spread(ys, xs), strict=True)]
    return many(xs, ys) if xs else ()


def _boxed(ys: Any, xs: Storages, bulk: bool) -> Any:
    """Convert a float to a 0-d tensor if the tensors are on the CPU: kernels are twice as fast."""
    if not bulk or not isinstance(ys, float) or not xs or not xs[0].is_cpu:
        return ys
    dtype, *others = set(map(_DTYPE, xs))
    # In the tensors' dtype, or it would promote 0-d tensors. Half precision would round it.
    return (
        ys if others or dtype not in _EXACT else torch.scalar_tensor(ys, dtype=dtype, device="cpu")
    )


def _spread(ys: Any, xs: Storages) -> Sequence[Any]:
    return ys if isinstance(ys, (list, tuple)) else [_like(ys, x) for x in xs]


def _like(value: Scalar, x: Tensor) -> Any:
    return value.to(x) if isinstance(value, Tensor) else value


def _same_dtypes(xs: Storages, ys: Storages) -> bool:
    return list(map(_DTYPE, xs)) == list(map(_DTYPE, ys))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _widest(xs: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any([x.dtype == torch.float64 for x in xs]) else torch.float32
