"""Functional collectives of ``torch.distributed``: they return new tensors, and can be recorded.

A group of one process needs no process group: there every collective is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ops: Any = torch.ops._c10d_functional


def started() -> bool:
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


_grids: dict[Any, Any] = {}  # making one is an exchange, and it lasts as long as the process group


def grid(data: int, tensor: int) -> Any:
    """All ranks along two axes, ``"data"`` and ``"tensor"``; all must call it."""
    from torch.distributed.device_mesh import init_device_mesh

    key = (dist.group.WORLD, data, tensor)
    if key not in _grids:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        _grids[key] = init_device_mesh(kind, (data, tensor), mesh_dim_names=("data", "tensor"))
    return _grids[key]


def summed(tensor: Tensor, group: Any) -> Tensor:
    """The sum over the ranks of a group, the same bits on each."""
    return _ops.wait_tensor(_ops.all_reduce(tensor.contiguous(), "sum", group.group_name))


def gathered(tensor: Tensor, group: Any) -> Tensor:
    """The tensors of all ranks, along a new leading dimension."""
    size = group.size()
    out = _ops.all_gather_into_tensor(tensor.reshape(-1), size, group.group_name)
    return _ops.wait_tensor(out).reshape(size, *tensor.shape)


def scattered(tensor: Tensor, group: Any) -> Tensor:
    """This rank's row of the sum over ranks; `tensor` has a row for each."""
    out = _ops.reduce_scatter_tensor(tensor.reshape(-1), "sum", group.size(), group.group_name)
    return _ops.wait_tensor(out).reshape(tensor.shape[1:])


def exchanged(value: Any, group: Any) -> list[Any]:
    """The Python values of all ranks, in order: for what the ranks have to agree on."""
    found: list[Any] = [None] * group.size()
    dist.all_gather_object(found, value, group=group)
    return found
