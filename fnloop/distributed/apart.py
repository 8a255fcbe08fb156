"""``Apart``: the ranks of a mesh with a process group of their own, for another thread."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from fnloop.distributed.mesh import Mesh


class Apart(Mesh):
    """The same ranks as `mesh`, which meet apart from it.

    Collectives of one group are matched by their order, and a thread has its own.

    Args:
        mesh: The ranks. All of them make it together.

    >>> Apart(Mesh()).exchange("one")
    ['one']
    """

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh.data)
        group = dist.new_group(backend="gloo") if mesh.data > 1 else None
        object.__setattr__(self, "_group", group)

    @property
    def group(self) -> Any:
        return self.__dict__["_group"]

    def close(self) -> None:
        """Give the group back; each rank does so when it needs it no more."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            object.__setattr__(self, "_group", None)
