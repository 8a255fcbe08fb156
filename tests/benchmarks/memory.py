"""How much memory a step takes at its peak, in units of the parameters' size."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

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
    """In a fresh process: what the resident memory grows by, from before the model is built.

    Training `little` before that loads what the libraries load. The first steps, in which things
    are compiled and allocated, do not count; parameters and optimizer, which stay, do.

    Returns:
        ``megabytes`` of the parameters; ``peak`` during a step and ``resting`` after it, as
        multiples of that.
    """
    contender.build(little, time.perf_counter).block(4)
    before = _settled()
    size = sum(p.numel() * p.element_size() for p in problem.model().parameters())
    training = contender.build(problem, time.perf_counter)
    training.block(4)
    _settled()
    _CLEAR.write_text("5")  # the peak is counted from now
    training.block(4)
    return {
        "megabytes": size / 1e6,
        "peak": (_resident("VmHWM") - before) / size,
        "resting": (_settled() - before) / size,
    }


def _settled() -> int:
    """Resident bytes, once what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def _resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
