"""torch's fused optimizer kernels, and what their callers share."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from fnloop._torch import foreach
from fnloop._torch.tracing import tracing

Tensors: TypeAlias = dict[str, Tensor]
Number: TypeAlias = float | Tensor

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
    first = next(iter(params.values()))
    dtype, device = first.dtype, first.device
    if device.type not in ("cpu", "cuda") or dtype not in (torch.float32, torch.float64):
        return False
    if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in others):
        return False
    for t in (*params.values(), *grads.values()):
        if t.dtype is not dtype or t.device != device or t.layout is not torch.strided:
            return False
    return not foreach.differentiated((*params.values(), *grads.values(), lr, *others))


def rate(lr: Number) -> Number:
    """A learning rate as the kernels take it: a number, or a tensor on the parameters' device."""
    return float(lr) if isinstance(lr, Tensor) and lr.device.type == "cpu" else lr


def copies(*groups: Tensors) -> list[list[Tensor]]:
    """Fresh copies of each group's tensors, made in one call."""
    fresh = foreach.clone([t for group in groups for t in group.values()])
    ends = [0]
    for group in groups:
        ends.append(ends[-1] + len(group))
    return [fresh[i:j] for i, j in pairwise(ends)]


def found_inf(finite: bool | Tensor) -> Tensor | None:
    """The flag that makes a fused kernel leave everything as it is: float32[], or None."""
    return None if finite is True else torch.logical_not(torch.as_tensor(finite)).float()


def counted(count: Tensor, finite: bool | Tensor) -> Tensor:
    """`count` after a step that is counted where `finite`."""
    return count + 1 if finite is True else count + finite
