"""``mesh``: the processes that train together, as a value."""

from __future__ import annotations

import dataclasses
import datetime
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fnloop._torch import collectives

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Processes that train together. It compares by its size, and is the same on every rank.

    Attributes:
        data: Ranks among which the batch is divided.

    >>> mesh()
    mesh(data=1)
    """

    data: int = 1

    @property
    def rank(self) -> int:
        """This process's place along `data`."""
        return dist.get_rank() if self.data > 1 else 0

    @property
    def group(self) -> Any:
        """The process group of `data`."""
        return dist.group.WORLD

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, equal bits on all of them."""
        return tensor if self.data == 1 else collectives.summed(tensor, self.group)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks along a new leading dimension; their shapes are equal."""
        return tensor[None] if self.data == 1 else collectives.gathered(tensor, self.group)

    def scatter(self, tensor: Tensor) -> Tensor:
        """This rank's row of the sum over ranks; `tensor` has a row for each rank."""
        return tensor[0] if self.data == 1 else collectives.scattered(tensor, self.group)

    def exchange(self, value: T) -> list[T]:
        """The Python values of all ranks, in order. Every rank must call it."""
        return [value] if self.data == 1 else collectives.exchanged(value, self.group)

    def __repr__(self) -> str:
        return f"mesh(data={self.data})"


def mesh(data: int | None = None, timeout: float = 600.0) -> Mesh:
    """The processes that train together.

    Under ``torchrun`` it joins the process group, if the program has not: with gloo for tensors on
    the CPU and NCCL for those on a GPU. One process is a mesh of one, so that the same program runs
    by itself.

    Args:
        data: Ranks among which each batch is divided; default all processes.
        timeout: Seconds that a rank waits for the others, which may have to compile meanwhile.

    Raises:
        ValueError: The number of processes is another.

    >>> mesh(data=1)
    mesh(data=1)
    """
    if not collectives.started() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    there = dist.get_world_size() if collectives.started() else 1
    wanted = there if data is None else data
    if wanted != there:
        start = f"torchrun --nproc-per-node {wanted} train.py"
        raise ValueError(
            f"fl.mesh(data={data}) is of {wanted} processes, and this program runs in {there}. "
            f"Start it by {start!r}, or leave data= out to take as many as there are."
        )
    return Mesh(wanted)
