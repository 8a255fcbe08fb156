"""How many bytes the collectives of a call move."""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts what each rank sends in the collectives inside of it, its own and those of torch.

    A rank sends its share of a gather to all others by passing on what it gets (a ring), and so
    each but one of all shares; the same of a reduction into pieces; and both in an all-reduce.

    Args:
        group: Count only functional collectives in this group; by default all, and those of all
            ranks that are not functional.

    Attributes:
        moved: Bytes that a rank sends, by kind of collective.
        calls: Number of collectives, by kind.
    """

    def __init__(self, group=None):
        super().__init__()
        self._group = group
        self.moved, self.calls = Counter(), Counter()

    @property
    def total(self):
        """Bytes that a rank sends."""
        return sum(self.moved.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any([issubclass(each, DTensor) for each in types]):
            return NotImplemented  # it does the operation on its own, and that comes here again
        name, _, _ = func.name().partition(".")
        space, _, name = name.partition("::")
        if space == "_c10d_functional" and isinstance(args[-1], str):  # others only wait
            group = dist.distributed_c10d._resolve_process_group(args[-1])
            if self._group is None or group.group_name == self._group.group_name:
                self._count(name, args, group.size() - 1)
        elif space == "c10d" and self._group is None:
            self._count(name, args, dist.get_world_size() - 1)
        return func(*args, **(kwargs or {}))

    def _count(self, name, args, others):
        if name in ("barrier", "monitored_barrier_"):
            return
        if name in ("all_reduce", "allreduce_"):
            kind, sent = "reduce", 2 * others / (others + 1) * _bytes(args[0])
        elif name == "all_gather_into_tensor":
            kind, sent = "gather", others * _bytes(args[0])
        elif name in ("_allgather_base_", "allgather_"):
            kind, sent = "gather", others * _bytes(args[1])
        elif name == "reduce_scatter_tensor":
            kind, sent = "scatter", others / (others + 1) * _bytes(args[0])
        elif name == "_reduce_scatter_base_":
            kind, sent = "scatter", others / (others + 1) * _bytes(args[1])
        elif name == "broadcast_":
            kind, sent = "broadcast", _bytes(args[0])
        else:
            raise NotImplementedError(f"It is not known what {name} sends.")
        self.moved[kind] += round(sent)
        self.calls[kind] += 1


def _bytes(tensors):
    leaves = torch.utils._pytree.tree_leaves(tensors)
    return sum(t.nbytes for t in leaves if isinstance(t, torch.Tensor))
