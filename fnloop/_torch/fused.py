"""torch's fused optimizer kernels, and what their callers share."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from operator import attrgetter
from typing import TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop._torch.tracing import tracing

Tensors: TypeAlias = dict[str, Tensor]
Number: TypeAlias = float | Tensor

_DTYPES = {torch.float32, torch.float64}
# By attrgetter and map: a loop in Python over the tensors costs three times as much.
_DTYPE, _IS_CPU, _LAYOUT, _REQUIRES_GRAD, _SHAPE = map(
    attrgetter, ("dtype", "is_cpu", "layout", "requires_grad", "shape")
)

_FACTS = attrgetter("dtype", "layout", "is_cpu", "requires_grad")
_PLAIN = {(torch.float32, torch.strided, True, False)}

adam_ = torch._fused_adam_
adamw_ = torch._fused_adamw_
sgd_ = torch._fused_sgd_
adagrad_ = torch._fused_adagrad_


def usable(grads: Tensors, params: Tensors, lr: Number, *others: Number) -> bool:
    """Whether torch's fused optimizer kernels can take these tensors and hyperparameters.

    They write in place and know no derivative, and take hyperparameters other than the learning
    rate as Python numbers: a tensor on an accelerator would have to be waited for.
    """
    if tracing() or not params:
        return False
    tensors = [*params.values(), *grads.values()]
    # The common case in one pass; what follows tells the others apart.
    if set(map(_FACTS, tensors)) == _PLAIN and all(map(Tensor.is_contiguous, tensors)):
        plain = not any([isinstance(value, Tensor) for value in (lr, *others)])
        if plain and same_shapes(tensors[len(params) :], tensors[: len(params)]):
            return True
    dtypes = set(map(_DTYPE, tensors))
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        return False
    if not all(map(_IS_CPU, tensors)) and {t.device.type for t in tensors} != {"cuda"}:
        return False
    if any([isinstance(value, Tensor) and not value.is_cpu for value in others]):
        return False
    if not same_layout(tensors[len(params) :], tensors[: len(params)]):
        return False
    if torch.is_grad_enabled() and any(map(_REQUIRES_GRAD, tensors)):
        return False
    return not foreach.differentiated((lr, *others))


def same_shapes(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors have the same shapes, pair by pair."""
    return list(map(_SHAPE, some)) == list(map(_SHAPE, others))


def same_layout(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors lie in memory alike, pair by pair: the kernels run through raw memory."""
    if not same_shapes(some, others):
        return False
    if set(map(_LAYOUT, some)) != {torch.strided}:
        return False
    if all(map(Tensor.is_contiguous, some)) and all(map(Tensor.is_contiguous, others)):
        return True
    return [t.stride() for t in some] == [t.stride() for t in others]


def rate(lr: Number) -> Number:
    """A learning rate as the kernels take it: a number, or a tensor on the parameters' device."""
    return float(lr) if isinstance(lr, Tensor) and lr.device.type == "cpu" else lr


def copies(params: Tensors, *memory: Tensors) -> list[list[Tensor]]:
    """Fresh copies of the parameters and of each part of the memory, laid out alike."""
    n = len(params)
    shapes = list(map(_SHAPE, params.values()))
    if any([list(map(_SHAPE, part.values())) != shapes for part in memory]):
        raise ValueError("The optimizer's memory has other shapes than the parameters.")
    fresh = foreach.copies([t for group in (params, *memory) for t in group.values()])
    groups = [fresh[i : i + n] for i in range(0, len(fresh), n)]
    if all(map(Tensor.is_contiguous, fresh)):
        return groups
    return [
        group if same_layout(group, groups[0]) else list(map(_like, group, groups[0]))
        for group in groups
    ]


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(other).copy_(tensor)


def found_inf(finite: bool | Tensor) -> Tensor | None:
    """The flag that makes a fused kernel leave everything as it is: float32[], or None."""
    return None if finite is True else torch.logical_not(torch.as_tensor(finite)).float()


def counted(count: Tensor, finite: bool | Tensor) -> Tensor:
    """`count` after a step that is counted where `finite`."""
    return count + 1 if finite is True else count + finite
