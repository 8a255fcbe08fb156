"""How much memory a call's tensors take."""

from __future__ import annotations

import weakref

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make inside of it, until they are freed.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were alive at once.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any([issubclass(each, DTensor) for each in types]):
            return NotImplemented  # it does the operation on its own, and that comes here again
        result = func(*args, **(kwargs or {}))
        given = {_address(t) for t in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            if _address(tensor) not in given | self._known:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        address, size = storage._cdata, storage.nbytes()
        self._known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address, size):
        self._known.discard(address)  # another may have it next
        self.now -= size


def _tensors(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.device.type != "meta"]


def _address(tensor):
    return tensor.untyped_storage()._cdata
