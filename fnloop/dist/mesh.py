"""``mesh``: the processes that train together, as a value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fnloop._torch import collectives, rank_store
from fnloop.dist.farewell import say_farewell
from fnloop.dist.launch import Place, place
from fnloop.dist.quiet import be_quiet
from fnloop.dist.whereabouts import lost

T = TypeVar("T")
V = TypeVar("V")


def _together(exchange: Callable[[Mesh, T], V]) -> Callable[[Mesh, T], V]:
    """An exchange that says which rank is missing, if one is."""

    @functools.wraps(exchange)
    def call(mesh: Mesh, value: T) -> V:
        try:
            return exchange(mesh, value)
        except RuntimeError as error:
            if rank_store.is_lost(error):
                raise lost(error) from error
            raise

    return call


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

    @_together
    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, equal bits on all of them."""
        return tensor if self.data == 1 else collectives.summed(tensor, self.group)

    @_together
    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks along a new leading dimension; their shapes are equal."""
        return tensor[None] if self.data == 1 else collectives.gathered(tensor, self.group)

    @_together
    def scatter(self, tensor: Tensor) -> Tensor:
        """This rank's row of the sum over ranks; `tensor` has a row for each rank."""
        return tensor[0] if self.data == 1 else collectives.scattered(tensor, self.group)

    @_together
    def exchange(self, value: T) -> list[T]:
        """The Python values of all ranks, in order. Every rank must call it."""
        return [value] if self.data == 1 else collectives.exchanged(value, self.group)

    def __repr__(self) -> str:
        return f"mesh(data={self.data})"


def mesh(data: int | None = None, timeout: float = 600.0) -> Mesh:
    """The processes that train together.

    Under ``torchrun``, SLURM's ``srun`` and ``mpirun`` it joins the process group, if the program
    has not: with gloo for tensors on the CPU and NCCL for those on a GPU, of which each process of
    a machine takes its own. One process is a mesh of one, so that the same program runs by itself.

    What all ranks would say is said once: the warnings and the log of ranks above zero are left
    out, but for errors.

    Args:
        data: Ranks among which each batch is divided; default all processes.
        timeout: Seconds that a rank waits for the others, which may have to compile meanwhile.

    Raises:
        ValueError: The number of processes is another.

    >>> mesh(data=1)
    mesh(data=1)
    """
    own = place()
    if not collectives.started() and own is not None and own.size > 1:
        _join(own, timeout)
    there = dist.get_world_size() if collectives.started() else 1
    wanted = there if data is None else data
    if wanted != there:
        start = f"torchrun --nproc-per-node {wanted} train.py"
        raise ValueError(
            f"fl.mesh(data={data}) is of {wanted} processes, and this program runs in {there}. "
            f"Start it by {start!r}, or leave data= out to take as many as there are."
        )
    return Mesh(wanted)


def _join(own: Place, timeout: float) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(own.local % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    rank_store.join(backend, own.meeting, own.rank, own.size, timeout)
    say_farewell()
    if own.rank > 0:
        be_quiet()
