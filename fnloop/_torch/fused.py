"""torch's fused optimizer kernels.

The kernels work in place and take hyperparameters as Python numbers. They are not differentiable;
the caller checks that no derivative is needed. Each function here returns a `Kernel`, which has not
run yet; or None if torch's kernel cannot be used.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fnloop._torch.autograd import require_grad
from fnloop._torch.tracing import opaque

Storages: TypeAlias = tuple[Tensor, ...] | list[Tensor]
Number: TypeAlias = float | Tensor
Groups: TypeAlias = list[Storages]
"""The parameters, then each part of the memory."""


class Kernel(NamedTuple):
    """A fused kernel, ready to run.

    Attributes:
        given: Parameters and memory as they are.
        on: Returns the call that writes the new values over such groups of tensors.
        at_once: Whether that is all there is to do, and the strides of `given` are such that it can
            be done to them.
    """

    given: Groups
    on: Callable[[Groups], Callable[[], Any]]
    at_once: bool

    def on_copies(self) -> Groups:
        """The new parameters, then each part of the new memory, as new tensors."""
        n = len(self.given[0])
        fresh = list(torch._foreach_clone(list(itertools.chain.from_iterable(self.given))))
        groups: Groups = [fresh[i : i + n] for i in range(0, len(fresh), n)]
        if not self.at_once:
            groups = [
                group if _same_layout(group, groups[0]) else list(map(_like, group, groups[0]))
                for group in groups
            ]
        self.on(groups)()
        return groups


_NUMBERS = {float, int}
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
) -> Kernel | None:
    """Adam and AdamW. `memory` is the two moments, and for AMSGrad the maximum of the second.

    Args:
        params, grads, memory: Lists of tensors with the same shapes.
        count: float32[]; the number of this update, from 1.
        finite: Whether to update; if false, nothing is changed.
        quick: Whether all tensors are known to be contiguous, on the CPU, and of one dtype, float32
            or float64.
        decoupled: Use AdamW's weight decay.
        lr, betas, eps, weight_decay, maximize: As in torch.
    """
    apart = decoupled and isinstance(weight_decay, Tensor)  # the kernel requires a number
    decay = 0.0 if apart else weight_decay
    if not _usable(params, grads, memory, quick, lr, *betas, eps, decay):
        return None
    if apart and require_grad([weight_decay]):
        return None
    kernel = _adamw_ if decoupled else _adam_

    def on(groups: Groups) -> Callable[[], Any]:
        if apart:
            kept = torch.where(_flag(finite), 1 - lr * weight_decay, 1.0)
            # Of another dtype, it would take one kernel for each tensor.
            torch._foreach_mul_(groups[0], kept.to(groups[0][0].dtype))
        return functools.partial(
            kernel,
            groups[0],
            grads,
            groups[1],
            groups[2],
            groups[3] if len(groups) > 3 else [],
            [count] * len(grads),
            lr=_rate(lr),
            beta1=float(betas[0]),
            beta2=float(betas[1]),
            weight_decay=float(decay),
            eps=float(eps),
            amsgrad=len(groups) > 3,
            maximize=maximize,
            grad_scale=None,
            found_inf=_found_inf(finite),
        )

    return _kernel([params, *memory], on, quick, not apart)


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
) -> Kernel | None:
    """SGD. `memory` is the momentum buffer, or empty without momentum. Arguments as for `adam`."""
    if memory and not isinstance(momentum, Tensor) and momentum == 0:
        return None  # the kernel does not update the buffer then
    if not _usable(params, grads, memory, quick, lr, momentum, weight_decay):
        return None

    def on(groups: Groups) -> Callable[[], Any]:
        return functools.partial(
            _sgd_,
            groups[0],
            grads,
            groups[1] if memory else [],
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

    return _kernel([params, *memory], on, quick)


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
) -> Kernel | None:
    """Adagrad. `memory` is the sum of squares. Arguments as for `adam`."""
    if not _usable(params, grads, memory, quick, lr, lr_decay, weight_decay, eps):
        return None

    def on(groups: Groups) -> Callable[[], Any]:
        return functools.partial(
            _adagrad_,
            groups[0],
            grads,
            groups[1],
            [count] * len(grads),
            lr=_rate(lr),
            lr_decay=float(lr_decay),
            weight_decay=float(weight_decay),
            eps=float(eps),
            maximize=maximize,
            grad_scale=None,
            found_inf=_found_inf(finite),
        )

    return _kernel([params, *memory], on, quick)


def _usable(
    params: Storages,
    grads: Storages,
    memory: Sequence[Storages],
    quick: bool,
    lr: Number,
    *others: Number,
) -> bool:
    """Whether a kernel supports these tensors and numbers."""
    if not params or opaque():
        return False
    if not set(map(type, (lr, *others))) <= _NUMBERS:
        numbers = [value for value in (lr, *others) if isinstance(value, Tensor)]
        if require_grad(numbers) or any([not n.is_cpu for n in numbers if n is not lr]):
            return False
    return quick or _fit(params, grads, memory)


def _kernel(
    given: Groups,
    on: Callable[[Groups], Callable[[], Any]],
    quick: bool,
    one_call: bool = True,
) -> Kernel:
    params = given[0]
    alike = quick or all([_same_layout(group, params) for group in given])
    return Kernel(given, on, one_call and alike)


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
    """Convert a learning rate for the kernels: on the CPU to a number, elsewhere to float32."""
    if not isinstance(lr, Tensor):
        return lr
    return float(lr) if lr.is_cpu else lr.to(torch.float32)


def _found_inf(finite: bool | Tensor) -> Any:
    """The kernels' flag to skip the update: float32[], or None if `finite` is True."""
    return None if finite is True else torch.logical_not(_flag(finite)).float()


def _flag(finite: bool | Tensor) -> Tensor:
    return finite if isinstance(finite, Tensor) else torch.tensor(finite, device="cpu")
