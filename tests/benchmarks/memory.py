"""How much memory a step takes at its peak, in units of the parameters' size."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .contenders import Contender
    from .problems import Problem

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""For the process: glibc gives large tensors back when they are freed, not when it suits it."""


def available() -> bool:
    """Whether this system can tell the peak of a process since a moment: Linux can."""
    return _CLEAR.exists()


def peak(problem: Problem, little: Problem, contender: Contender) -> dict[str, float]:
    """In a fresh process: the tensors that are kept between steps, and the peak during a step.

    Training `little` before that loads what the libraries load. The first steps, in which things
    are compiled and allocated, do not count; parameters and optimizer, which stay, do.

    What compiling leaves behind is no tensor, and is not counted.

    Returns:
        ``megabytes`` of the parameters; ``resting`` of all tensors between steps but those of the
        batches, and ``peak`` of a step, both as multiples of the parameters.
    """
    contender.build(little, time.perf_counter).block(4)
    size = sum(p.numel() * p.element_size() for p in problem.model().parameters())
    look = Looks()
    training = contender.build(problem, look)
    training.block(4)
    training.block(4)
    resting = tensors() - batches(problem)
    return {
        "megabytes": size / 1e6,
        "peak": (resting + look.rise) / size,
        "resting": resting / size,
    }


class Looks:
    """A clock for a loop, which looks at the memory each time.

    Attributes:
        rise: Resident bytes by which the process grew between the last two looks, at its peak.
    """

    def __init__(self) -> None:
        self._settled, self.rise = 0, 0
        self()

    def __call__(self) -> float:
        self.rise = _resident("VmHWM") - self._settled
        self._settled = _settled()
        _CLEAR.write_text("5")  # the peak is counted from now
        return time.perf_counter()


def tensors() -> int:
    """Bytes of the tensors that there are, PyTorch's and JAX's.

    >>> import torch
    >>> before, kept = tensors(), torch.zeros(250)
    >>> tensors() - before
    1000
    """
    found: dict[int, int] = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, torch.nn.Parameter) and each.device.type == "cpu":
            for tensor in (each, each.grad if each.is_leaf else None):
                found.update(_memory(tensor))
    arrays = sys.modules["jax"].live_arrays() if "jax" in sys.modules else []
    return sum(found.values()) + sum(array.nbytes for array in arrays)


def _memory(tensor: torch.Tensor | None) -> dict[int, int]:
    """The bytes of a tensor's memory by its address; nothing if it has none of its own."""
    try:
        storage = None if tensor is None else tensor.untyped_storage()
    except NotImplementedError:  # a sparse tensor, or one inside of a transform
        return {}
    return {} if storage is None else {storage.data_ptr(): storage.nbytes()}


def batches(problem: Problem) -> int:
    """Bytes of a problem's batches; JAX has a copy of them."""
    parts = [x for b in problem.batches for x in (b if isinstance(b, tuple) else (b,))]
    storages = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in parts)}
    return sum(storages.values()) * (2 if "jax" in sys.modules else 1)


def _settled() -> int:
    """Resident bytes, once what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def _resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
