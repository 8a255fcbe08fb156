"""torch's fused optimizer kernels, applied to fresh copies of parameters and memory.

The kernels work in place and take hyperparameters as Python numbers. They are not differentiable;
the caller checks that no derivative is needed. Each function returns None if its kernel cannot be
used.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fnloop._torch.autograd import require_grad
from fnloop._torch.tracing import opaque

Storages: TypeAlias = tuple[Tensor, ...] | list[Tensor]
Number: TypeAlias = float | Tensor
Made: TypeAlias = list[list[Tensor]]
"""The new parameters, then each part of the new memory."""

_KINDS = {
    (dtype, torch.strided, *device)
    for dtype in (torch.float32, torch.float64)
    for device in ((True, False), (False, True))
}
# attrgetter with map takes a third of the time of a Python loop.
_SHAPE = attrgetter("shape")
_KIND = attrgetter("dtype", "layout", "is_cpu", "is_cuda")

_adam_: Any = torch._fused_adam_
_adamw_: Any = torch._fused_adamw_
_sgd_: Any = torch._fused_sgd_
_adagrad_: Any = torch._fused_adagrad_


def adam(
    params: Storages,
    grads: Storages,
    memory: Sequence[Storages],
    count: Tensor,
    finite: bool | Tensor,
    quick: bool,
    *,
    decoupled: bool,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    weight_decay: Number,
    maximize: bool,
) -> Made | None:
    """Adam and AdamW. `memory` is the two moments, and for AMSGrad the maximum of the second.

    Args:
        params, grads, memory: Lists of tensors with the same shapes.
        count: float32[]; the number of this update, from 1.
        finite: Whether to update; if false, the copies are returned unchanged.
        quick: Whether all tensors are known to be contiguous, on the CPU, and of one dtype, float32
            or float64.
        decoupled: Use AdamW's weight decay.
        lr, betas, eps, weight_decay, maximize: As in torch.
    """
    apart = decoupled and isinstance(weight_decay, Tensor)  # the kernel requires a number
    decay = 0.0 if apart else weight_decay
    made = _copies(params, grads, memory, quick, lr, *betas, eps, decay)
    if made is None:
        return None
    if apart:
        kept = torch.where(_flag(finite), 1 - lr * weight_decay, 1.0)
        torch._foreach_mul_(made[0], kept)
    kernel = _adamw_ if decoupled else _adam_
    kernel(
        made[0],
        grads,
        made[1],
        made[2],
        made[3] if len(made) > 3 else [],
        [count] * len(params),
        lr=_rate(lr),
        beta1=float(betas[0]),
        beta2=float(betas[1]),
        weight_decay=float(decay),
        eps=float(eps),
        amsgrad=len(made) > 3,
        maximize=maximize,
        grad_scale=None,
        found_inf=_found_inf(finite),
    )
    return made


def sgd(
    params: Storages,
    grads: Storages,
    memory: Sequence[Storages],
    finite: bool | Tensor,
    quick: bool,
    *,
    lr: Number,
    momentum: Number,
    weight_decay: Number,
    nesterov: bool,
    maximize: bool,
) -> Made | None:
    """SGD. `memory` is the momentum buffer, or empty without momentum. Arguments as for `adam`."""
    if memory and not isinstance(momentum, Tensor) and momentum == 0:
        return None  # the kernel does not update the buffer then
    made = _copies(params, grads, memory, quick, lr, momentum, weight_decay)
    if made is None:
        return None
    _sgd_(
        made[0],
        grads,
        made[1] if memory else [],
        weight_decay=float(weight_decay),
        momentum=float(momentum),
        lr=_rate(lr),
        dampening=0.0,
        nesterov=nesterov,
        maximize=maximize,
        is_first_step=False,
        grad_scale=None,
        found_inf=_found_inf(finite),
    )
    return made


def adagrad(
    params: Storages,
    grads: Storages,
    memory: Sequence[Storages],
    count: Tensor,
    finite: bool | Tensor,
    quick: bool,
    *,
    lr: Number,
    lr_decay: Number,
    weight_decay: Number,
    eps: Number,
    maximize: bool,
) -> Made | None:
    """Adagrad. `memory` is the sum of squares. Arguments as for `adam`."""
    made = _copies(params, grads, memory, quick, lr, lr_decay, weight_decay, eps)
    if made is None:
        return None
    _adagrad_(
        made[0],
        grads,
        made[1],
        [count] * len(params),
        lr=_rate(lr),
        lr_decay=float(lr_decay),
        weight_decay=float(weight_decay),
        eps=float(eps),
        maximize=maximize,
        grad_scale=None,
        found_inf=_found_inf(finite),
    )
    return made


def _copies(
    params: Storages,
    grads: Storages,
    memory: Sequence[Storages],
    quick: bool,
    lr: Number,
    *others: Number,
) -> Made | None:
    """Fresh copies of parameters and memory with equal strides; None if no kernel supports them."""
    if not params or opaque():
        return None
    numbers = [value for value in (lr, *others) if isinstance(value, Tensor)]
    if numbers and (require_grad(numbers) or any([not n.is_cpu for n in numbers if n is not lr])):
        return None
    if not quick and not _fit(params, grads, memory):
        return None
    n = len(params)
    fresh = list(torch._foreach_clone([*params, *[t for part in memory for t in part]]))
    groups = [fresh[i : i + n] for i in range(0, len(fresh), n)]
    if quick or all(map(Tensor.is_contiguous, fresh)):
        return groups
    return [
        group if _same_layout(group, groups[0]) else list(map(_like, group, groups[0]))
        for group in groups
    ]


def _fit(params: Storages, grads: Storages, memory: Sequence[Storages]) -> bool:
    """Whether a kernel supports these tensors.

    Raises:
        ValueError: The memory has other shapes than the parameters.
    """
    kinds = set(map(_KIND, [*params, *grads, *[t for part in memory for t in part]]))
    if len(kinds) > 1 or not kinds <= _KINDS:
        return False
    shapes = list(map(_SHAPE, params))
    if any([list(map(_SHAPE, part)) != shapes for part in memory]):
        raise ValueError("The optimizer's memory has other shapes than the parameters.")
    return list(map(_SHAPE, grads)) == shapes and _same_layout(grads, params)


def _same_layout(some: Storages, others: Storages) -> bool:
    """Whether the strides are equal, pair by pair: the kernels iterate over raw memory."""
    if all(map(Tensor.is_contiguous, some)) and all(map(Tensor.is_contiguous, others)):
        return True
    return [t.stride() for t in some] == [t.stride() for t in others]


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(other).copy_(tensor)


def _rate(lr: Number) -> Number:
    """Convert a learning rate for the kernels: to a number if it is a tensor on the CPU."""
    return float(lr) if isinstance(lr, Tensor) and lr.device.type == "cpu" else lr


def _found_inf(finite: bool | Tensor) -> Any:
    """The kernels' flag to skip the update: float32[], or None if `finite` is True."""
    return None if finite is True else torch.logical_not(_flag(finite)).float()


def _flag(finite: bool | Tensor) -> Tensor:
    return finite if isinstance(finite, Tensor) else torch.tensor(finite, device="cpu")
