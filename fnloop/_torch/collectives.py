"""Functional collectives of ``torch.distributed``: they return new tensors, and can be recorded.

A group of one process needs no process group: there every collective is the identity.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fnloop._torch.tracing import transformed

_ops: Any = torch.ops._c10d_functional


def started() -> bool:
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


_grids: dict[Any, Any] = {}  # making one is an exchange, and it lasts as long as the process group
_made = itertools.count()


def grid(data: int, tensor: int) -> Any:
    """All ranks along two axes, data and tensor; all must call it.

    Its groups are not that of all ranks, also where one has all of them: see `hang_up`.
    """
    from torch.distributed.device_mesh import DeviceMesh

    key = (dist.group.WORLD, data, tensor)
    if key not in _grids:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        ranks = torch.arange(data * tensor).reshape(data, tensor)
        groups = [_group_of_mine(ranks.t()), _group_of_mine(ranks)]
        number = next(_made)  # else torch would look up what it knows of an equal one before
        names = f"data {number}", f"tensor {number}"
        _grids[key] = DeviceMesh.from_group(groups, kind, mesh=ranks, mesh_dim_names=names)
    return _grids[key]


def _group_of_mine(rows: Tensor) -> Any:
    """A group for each row of ranks; that of this rank."""
    options = _cpu_backend(dist.group.WORLD).options  # a group that only counts has none
    timeout = options and options._timeout
    groups = [(row, dist.new_group(row, timeout=timeout)) for row in rows.tolist()]
    return next(group for row, group in groups if dist.get_rank() in row)


def hang_up(data: int, tensor: int) -> None:
    """Close this rank's connections along the axis tensor of a grid, if there is one.

    Ranks that wait for it there, in exchanges of torch's own, fail at once (with gloo; NCCL's end
    by their timeout). All ranks do it sooner or later, since the next `grid` is another one.
    """
    found = _grids.pop((dist.group.WORLD, data, tensor), None)
    if found is None:
        return
    group = found.get_group(1)
    for other in set(range(tensor)) - {group.rank()}:
        with contextlib.suppress(RuntimeError):  # of a message that does not come, which closes all
            message = _cpu_backend(group).recv([torch.empty(1)], other, 0)
            message.wait(datetime.timedelta(milliseconds=1))


def _cpu_backend(group: Any) -> Any:
    return group._get_backend(torch.device("cpu"))


def summed(tensor: Tensor, group: Any) -> Tensor:
    """The sum over the ranks of a group, the same bits on each."""
    if transformed():
        return _of_members(summed, tensor, group, 0, 0)
    return _ops.wait_tensor(_ops.all_reduce(tensor.contiguous(), "sum", group.group_name))


def gathered(tensor: Tensor, group: Any) -> Tensor:
    """The tensors of all ranks, along a new leading dimension."""
    if transformed():
        return _of_members(gathered, tensor, group, 0, 1)
    size = group.size()
    out = _ops.all_gather_into_tensor(tensor.reshape(-1), size, group.group_name)
    return _ops.wait_tensor(out).reshape(size, *tensor.shape)


def scattered(tensor: Tensor, group: Any) -> Tensor:
    """This rank's row of the sum over ranks; `tensor` has a row for each."""
    if transformed():
        return _of_members(scattered, tensor, group, 1, 0)
    out = _ops.reduce_scatter_tensor(tensor.reshape(-1), "sum", group.size(), group.group_name)
    return _ops.wait_tensor(out).reshape(tensor.shape[1:])


class _OfMembers(torch.autograd.Function):
    """An exchange that under ``vmap`` is one of the tensors of all members.

    Torch has no rule for them: without one it exchanges for each member, and loses what came.
    """

    @staticmethod
    def forward(exchange: Any, tensor: Tensor, group: Any, before: int, after: int) -> Tensor:
        return exchange(tensor, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        exchange, tensor, group, before, after = args
        tensor = tensor.movedim(in_dims[1], before)
        return _of_members(exchange, tensor, group, before, after), after


_of_members: Any = _OfMembers.apply
"""An exchange, its arguments, and the dimension for the members in the tensor and the result."""


def exchanged(value: Any, group: Any) -> list[Any]:
    """The Python values of all ranks, in order: for what the ranks have to agree on.

    Raises:
        TypeError: That of a rank cannot be pickled; on all ranks, as others would wait for it.
    """
    found: list[Any] = [None] * group.size()
    dist.all_gather_object(found, _pickled(value), group=group)
    for rank, (_, error) in enumerate(found):
        if error:
            raise TypeError(
                f"Rank {rank} cannot send the others what they exchange, as pickle says: {error}. "
                "The usual cause is a metric that holds more than tensors and plain values: a "
                "lock, an open file, or a function defined in another."
            )
    return [pickle.loads(data) for data, _ in found]


def _pickled(value: Any) -> tuple[bytes, str]:
    """The value as bytes; or what is wrong with it."""
    try:
        return pickle.dumps(value), ""
    except Exception as error:
        return b"", f"{type(error).__name__}: {error}"
