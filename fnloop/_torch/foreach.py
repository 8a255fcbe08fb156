"""Arithmetic over lists of tensors: multi-tensor kernels where they run, one by one where not.

The ``torch._foreach_*`` functions have no batching rule, and fail in the backward pass where only a
scalar is differentiated: inside ``torch.func`` transforms and ``torch.compile``, and where autograd
records, each operation is done leaf by leaf (and Inductor fuses them). All functions are out of
place, unless their name ends in an underscore.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch.tracing import tracing, transformed

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Scalar: TypeAlias = Any  # a number or a 0-d tensor

_DTYPE = attrgetter("dtype")
_HALF = frozenset((torch.float16, torch.bfloat16))
_EXACT = frozenset((torch.float32, torch.float64))


def add(xs: Tensors, ys: Any, alpha: float = 1.0) -> list[Tensor]:
    """``x + alpha * y``; `ys` is a list or one scalar."""
    if _singly(xs, ys):
        return [torch.add(x, y, alpha=alpha) for x, y in zip(xs, _spread(ys, xs), strict=True)]
    if not xs:
        return []
    if alpha == 1.0:
        return list(torch._foreach_add(xs, ys))
    return list(torch._foreach_add(xs, ys, alpha=alpha))


def sub(xs: Tensors, ys: Any) -> list[Tensor]:
    """``x - y``."""
    return _both(torch._foreach_sub, torch.sub, xs, ys)


def mul(xs: Tensors, ys: Any) -> list[Tensor]:
    """``x * y``; `ys` is a list, a number, or one 0-d tensor."""
    return _both(torch._foreach_mul, torch.mul, xs, _boxed(ys, xs))


def div(xs: Tensors, ys: Any) -> list[Tensor]:
    """``x / y``; `ys` is a list, a number, or one 0-d tensor."""
    return _both(torch._foreach_div, torch.div, xs, _boxed(ys, xs))


def maximum(xs: Tensors, ys: Tensors) -> list[Tensor]:
    """The larger of each pair of values."""
    return _both(torch._foreach_maximum, torch.maximum, xs, ys)


def mul_(xs: Tensors, y: Tensor) -> None:
    """Multiply by one 0-d tensor IN PLACE; not inside transforms."""
    if xs:
        torch._foreach_mul_(xs, y)


def sqrt(xs: Tensors) -> list[Tensor]:
    """Square roots, with a derivative of zero at zero.

    The second moment of a gradient that is exactly zero stands still there, but the chain rule
    would multiply that zero with the root's infinite slope.
    """
    if differentiable(xs):
        zeros = [x == 0 for x in xs]
        roots = [torch.where(z, 1.0, x).sqrt() for z, x in zip(zeros, xs, strict=True)]
        return [torch.where(z, 0.0, r) for z, r in zip(zeros, roots, strict=True)]
    if _singly(xs):
        return [x.sqrt() for x in xs]
    return list(torch._foreach_sqrt(xs)) if xs else []


def sign(xs: Tensors) -> list[Tensor]:
    """Signs."""
    if _singly(xs):
        return [x.sign() for x in xs]
    return list(torch._foreach_sign(xs)) if xs else []


def abs(xs: Tensors) -> list[Tensor]:
    """Absolute values."""
    if _singly(xs):
        return [x.abs() for x in xs]
    return list(torch._foreach_abs(xs)) if xs else []


def lerp(xs: Tensors, ys: Tensors, weight: Scalar) -> list[Tensor]:
    """``x + weight * (y - x)``."""
    if _singly(xs, ys):
        return [torch.lerp(x, y.to(x.dtype), _like(weight, x)) for x, y in zip(xs, ys, strict=True)]
    if not xs:
        return []
    if isinstance(weight, Tensor):
        if not weight.is_cpu or weight.requires_grad:
            return [torch.lerp(x, y, weight.to(x)) for x, y in zip(xs, ys, strict=True)]
        weight = weight.item()
    return list(torch._foreach_lerp(xs, ys, weight))


def clamp(xs: Tensors, low: Scalar, high: Scalar) -> list[Tensor]:
    """Values cut to ``[low, high]``."""
    if _singly(xs) or isinstance(low, Tensor) or isinstance(high, Tensor):
        return [x.clamp(_like(low, x), _like(high, x)) for x in xs]
    return list(torch._foreach_clamp_max(torch._foreach_clamp_min(xs, low), high)) if xs else []


def copies(xs: Tensors) -> list[Tensor]:
    """Fresh copies, where nothing is transformed or differentiated."""
    return list(torch._foreach_clone(xs)) if xs else []


def norm(xs: Tensors) -> Tensor:
    """The Euclidean norm of all values together; float32 or wider, 0-d."""
    if not xs:
        return torch.zeros(())
    if _singly(xs) or not _HALF.isdisjoint(map(_DTYPE, xs)):
        norms = [torch.linalg.vector_norm(x, dtype=_wide(x)) for x in xs]
    else:
        norms = list(torch._foreach_norm(xs))
    return torch.linalg.vector_norm(torch.stack(norms))


def all_finite(xs: Tensors) -> Tensor:
    """bool[]: whether no value is infinite or nan."""
    if not xs:
        return torch.ones((), dtype=torch.bool)
    if tracing() or not all(map(Tensor.is_floating_point, xs)):
        return torch.stack([x.isfinite().all() for x in xs]).all()
    with torch.no_grad():
        one = torch.ones((), device=xs[0].device)
        return unscale_(copies(xs), one) == 0


def unscale_(xs: Tensors, factor: Tensor) -> Tensor:
    """Multiply by `factor` IN PLACE, and look for what is not finite in the same pass.

    Args:
        xs: Tensors that nobody else holds.
        factor: float32[].

    Returns:
        float32[]: 1.0 if any value is infinite or nan, else 0.0.
    """
    found = torch.zeros_like(factor)
    if not xs:
        return found
    torch._amp_foreach_non_finite_check_and_unscale_(list(xs), found, factor)
    return found


def differentiated(values: Iterable[Any]) -> bool:
    """Whether autograd records what is computed from these tensors and numbers."""
    if not torch.is_grad_enabled():
        return False
    return any([v.requires_grad for v in values if isinstance(v, Tensor)])


def differentiable(values: Iterable[Any]) -> bool:
    """Whether a derivative may be asked of what is computed from these."""
    return transformed() or differentiated(values)


def select(condition: Tensor, xs: Tensors, ys: Tensors) -> list[Tensor]:
    """`xs` where the 0-d `condition` is true, else `ys`."""
    return [torch.where(condition, x, y) for x, y in zip(xs, ys, strict=True)]


def _singly(xs: Tensors, ys: Any = ()) -> bool:
    return tracing() or differentiated(xs) or differentiated(_listed(ys))


def _listed(ys: Any) -> Sequence[Any]:
    return ys if isinstance(ys, (list, tuple)) else [ys]


def _both(many: Callable[..., Any], one: Callable[..., Any], xs: Tensors, ys: Any) -> list[Tensor]:
    if _singly(xs, ys):
        return [one(x, y) for x, y in zip(xs, _spread(ys, xs), strict=True)]
    return list(many(xs, ys)) if xs else []


def _boxed(ys: Any, xs: Tensors) -> Any:
    """A number as a 0-d tensor for tensors on the CPU, where it makes the kernels twice as fast."""
    if not isinstance(ys, float) or not xs or not xs[0].is_cpu or tracing():
        return ys
    dtype, *others = set(map(_DTYPE, xs))
    # Of their own dtype, or it would widen those that are 0-d; half precision would round it.
    return ys if others or dtype not in _EXACT else torch.scalar_tensor(ys, dtype=dtype)


def _spread(ys: Any, xs: Tensors) -> Sequence[Any]:
    return ys if isinstance(ys, (list, tuple)) else [_like(ys, x) for x in xs]


def _like(weight: Scalar, x: Tensor) -> Any:
    return weight.to(x) if isinstance(weight, Tensor) else weight


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
