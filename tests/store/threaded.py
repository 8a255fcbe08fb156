"""Ranks that are threads of one process, for batteries of which each try must be cheap."""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from fnloop.distributed import gates
from fnloop.distributed.mesh import Mesh

_here = threading.local()


class Threads(Mesh):
    """A mesh of threads, which meet at a barrier; see `ranks`.

    Those that share the tensors of a model exchange nothing: they only know their place.
    """

    def __init__(self, data, tensor=1):
        super().__init__(data, tensor)
        object.__setattr__(self, "_all", Threads(data * tensor) if tensor > 1 else self)
        object.__setattr__(self, "_barrier", threading.Barrier(data))
        object.__setattr__(self, "_values", [None] * data)

    @property
    def rank(self):
        return _here.rank // self.tensor

    @property
    def everyone(self):
        return self._all

    @property
    def across(self):
        return Place(_here.rank % self.tensor)

    def gather(self, tensor):
        return torch.stack(self.exchange(tensor))

    def exchange(self, value):
        self._values[self.rank] = value
        self._barrier.wait(20)
        found = list(self._values)
        self._barrier.wait(20)
        return found


class Place(NamedTuple):
    """A place among the ranks that share the tensors of a model."""

    rank: int


def ranks(mesh, work):
    """What `work(rank)` returns or raises on each rank."""
    mesh = mesh.everyone
    found = [None] * mesh.data

    def run(rank):
        _here.rank = rank
        try:
            found[rank] = work(rank)
        except BaseException as error:
            found[rank] = error
            mesh._barrier.abort()  # for one that is killed

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(mesh.data)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mesh._barrier.reset()
    return found


def without_notes(monkeypatch):
    """Gates are noted in a process group, which threads have not."""
    monkeypatch.setattr(gates, "come_to", lambda name: None)
