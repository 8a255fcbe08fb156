"""How many bytes the collectives of a call move."""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts what each rank sends in the collectives inside of it, its own and those of torch.

    A rank sends its share of a gather to all others by passing on what it gets (a ring), and so
    each but one of all shares; the same of a reduction into pieces; and both in an all-reduce.

    Attributes:
        moved: Bytes that a rank sends, by kind of collective.
        calls: Number of collectives, by kind.
    """

    def __init__(self):
        super().__init__()
        self.moved, self.calls = Counter(), Counter()

    @property
    def total(self):
        """Bytes that a rank sends."""
        return sum(self.moved.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, _, _ = func.name().partition(".")
        space, _, name = name.partition("::")
        if space in ("_c10d_functional", "c10d"):
            self._count(name, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name, args):
        others = dist.get_world_size() - 1
        if name in ("wait_tensor", "barrier", "monitored_barrier_"):
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
