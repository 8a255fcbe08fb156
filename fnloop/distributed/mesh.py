"""``mesh``: the processes that train together, as a value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fnloop._torch import collectives, rank_store
from fnloop.distributed.farewell import say_farewell
from fnloop.distributed.launch import Launched, launched
from fnloop.distributed.quiet import be_quiet
from fnloop.distributed.whereabouts import lost
from fnloop.names.arguments import bounded, whole
from fnloop.names.keywords import explained

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
        data: Ranks among which the batch is divided. All exchanges are among these.
        tensor: Ranks that share the tensors of one model, and the same part of the batch. They are
            neighbors: rank ``i`` is the one at ``divmod(i, tensor)``.

    >>> mesh()
    mesh(data=1)
    """

    data: int = 1
    tensor: int = 1

    @property
    def rank(self) -> int:
        """This process's place along `data`."""
        return dist.get_rank() // self.tensor if self.data > 1 else 0

    @property
    def group(self) -> Any:
        """The process group of `data`."""
        return dist.group.WORLD if self.tensor == 1 else self.grid.get_group(0)

    @property
    def everyone(self) -> Mesh:
        """All ranks, along one axis."""
        return self if self.tensor == 1 else Mesh(self.data * self.tensor)

    @property
    def across(self) -> Across:
        """The ranks that share the tensors of one model, as a mesh of their own."""
        return Across(self.tensor, whole=self)

    @property
    def grid(self) -> Any:
        """The mesh as torch knows it."""
        return collectives.grid(self.data, self.tensor)

    def hang_up(self) -> None:
        """Let ranks that share a model with this one wait for it no longer; then meet them anew."""
        if self.tensor > 1:
            collectives.hang_up(self.data, self.tensor)

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
        tensor = f", tensor={self.tensor}" if self.tensor > 1 else ""
        return f"mesh(data={self.data}{tensor})"


@dataclasses.dataclass(frozen=True, repr=False)
class Across(Mesh):
    """The ranks of a mesh that share the tensors of one model."""

    whole: Mesh = Mesh()

    @property
    def rank(self) -> int:
        return dist.get_rank() % self.data if self.data > 1 else 0

    @property
    def group(self) -> Any:
        return self.whole.grid.get_group(1)


@explained
def mesh(
    data: Annotated[int, whole(1)] | None = None,
    tensor: Annotated[int, whole(1)] = 1,
    timeout: Annotated[float, bounded(0, above=True)] = 600.0,
) -> Mesh:
    """The processes that train together.

    Under ``torchrun``, SLURM's ``srun`` and ``mpirun`` it joins the process group, with gloo for
    tensors on the CPU and NCCL for those on a GPU, of which each process of a machine takes its
    own. A process group that is there already, of the program or of Ray Train, is taken as it is.
    One process is a mesh of one, so that the same program runs by itself.

    What all ranks would say is said once: the warnings and the log of ranks above zero are left
    out, but for errors.

    Args:
        data: Ranks among which each batch is divided; default all processes, or as many groups of
            `tensor` as there are.
        tensor: Ranks that share the tensors of one model, in the same part of the batch.
        timeout: Seconds that a rank waits for the others, which may have to compile meanwhile. A
            process group that is there already has its own.

    Raises:
        ValueError: The number of processes is another; or the process group that is there
            exchanges no tensors on the CPU.

    >>> mesh(data=1)
    mesh(data=1)
    """
    own = launched()
    if collectives.started():
        if dist.get_world_size() > 1:
            _take()
    elif own is not None and own.size > 1:
        _join(own, timeout)
    there = dist.get_world_size() if collectives.started() else 1
    groups = there // tensor if data is None else data
    if (wanted := groups * tensor) != there:
        call = f"fl.mesh(data={groups}{f', tensor={tensor}' if tensor > 1 else ''})"
        start = f"torchrun --nproc-per-node {max(wanted, tensor)} train.py"
        raise ValueError(
            f"{call} is of {wanted} processes, and this program runs in {there}. "
            f"Start it by {start!r}, or leave data= out to take as many as there are."
        )
    return Mesh(groups, tensor)


def _join(own: Launched, timeout: float) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(own.local % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    rank_store.join(backend, own.meeting, own.rank, own.size, timeout)
    _begin()


def _take() -> None:
    """Take the process group that somebody else has joined."""
    if "cpu:" not in (backend := dist.get_backend_config()):
        raise ValueError(
            f"The process group of this program, {backend!r}, exchanges no tensors on the CPU, "
            "and ranks agree by those. The usual cause is a group of NCCL alone. Join one with "
            'both: dist.init_process_group("cpu:gloo,cuda:nccl"), or under Ray Train '
            'TorchTrainer(..., torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl")).'
        )
    _begin()


def _begin() -> None:
    say_farewell()
    if dist.get_rank() > 0:
        be_quiet()
