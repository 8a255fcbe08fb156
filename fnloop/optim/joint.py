"""Run an optimizer on joined tensors, inside a compiled step."""

from __future__ import annotations

from torch import Tensor

from fnloop.optim.base import Memory, Optimizer, Step, Tensors
from fnloop.values.packed import groups_of, joined, joined_memory, parted, parted_memory


def apply(
    optimizer: Optimizer,
    grads: Tensors,
    memory: Memory,
    params: Tensors,
    step: Step,
    finite: bool | Tensor,
) -> tuple[Tensors, Memory]:
    """``optimizer.apply``; on the vectors of packed parameters, where that makes no difference."""
    groups = groups_of(params) if optimizer.joint else ()
    if not groups:
        return optimizer.apply(grads, memory, params, step, finite)
    new_params, new_memory = optimizer.apply(
        joined(grads, groups), joined_memory(memory, groups), joined(params, groups), step, finite
    )
    return parted(new_params, groups, params), parted_memory(new_memory, memory, groups)
