"""``device_stats``: how much of the memory and of the processors is used."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fnloop.effects.effect import Effect, Run
from fnloop.values.counts import as_number
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Metrics
from fnloop.values.state import State

_OF_CUDA = (
    "allocated_bytes.all.current",
    "allocated_bytes.all.peak",
    "reserved_bytes.all.current",
    "reserved_bytes.all.peak",
    "num_alloc_retries",
    "num_ooms",
)
_PROC = Path("/proc")


class device_stats(Effect):
    """Look at the memory of the GPU and at the CPU; trackers and history write it.

    On a GPU ``device/allocated_bytes.all.current``, ``device/reserved_bytes.all.peak`` and others
    of ``torch.cuda.memory_stats``: what torch's allocator knows on the host, so that nothing waits
    for the device. Of the machine ``device/cpu_percent`` since it was last looked at,
    ``device/cpu_vm_percent`` and ``device/cpu_swap_percent`` of the memory, and of this process
    ``device/process_bytes``; from psutil if it is installed, else from ``/proc``. They are measured
    beside the metrics and are none: no callback sees them.

    Args:
        cpu: Whether to look at the CPU, too; default where there is no GPU.
        every_seconds: It is looked at no more often, however often somebody asks.

    >>> import fnloop as fl
    >>> callbacks = [device_stats(), fl.track(fl.trackers.CSV("runs/a.csv"))]
    """

    name = "device_stats"

    def __init__(self, cpu: bool | None = None, every_seconds: float = 1.0) -> None:
        self.cpu = cpu
        self.every_seconds = as_number(every_seconds, "device_stats(every_seconds=...)")

    def open(self, run: Run) -> None:
        device = run.state.step.device
        self._cuda = device if device.type == "cuda" else None
        self._cpu = (self._cuda is None) if self.cpu is None else self.cpu
        self._before = _Times.now() if self._cpu else None
        self._percent: float | None = None
        self._found: dict[str, float] = {}
        self._due = time.monotonic()
        run.gauges.append(self.measured)

    def __call__(self, state: State, metrics: Metrics) -> None:
        """It looks when somebody asks."""

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return False

    def measured(self) -> Mapping[str, float]:
        """What is used now, or was a moment ago."""
        if time.monotonic() >= self._due:
            found = self._of_gpu() | self._of_machine()
            self._found = {f"device/{name}": value for name, value in found.items()}
            self._due = time.monotonic() + self.every_seconds
        return self._found

    def _of_gpu(self) -> dict[str, float]:
        if self._cuda is None:
            return {}
        stats = torch.cuda.memory_stats(self._cuda)
        return {name: stats[name] for name in _OF_CUDA if name in stats}

    def _of_machine(self) -> dict[str, float]:
        if not self._cpu:
            return {}
        found, before, now = _memory(), self._before, _Times.now()
        if before is not None and now is not None and now.total > before.total:
            busy = (now.busy - before.busy) / (now.total - before.total)
            self._percent, self._before = 100 * min(1.0, max(0.0, busy)), now
        return found if self._percent is None else {"cpu_percent": self._percent, **found}


class _Times(NamedTuple):
    """What all processors have spent since the machine started, in a unit of its own."""

    busy: float
    total: float

    @classmethod
    def now(cls) -> _Times | None:
        """None where nobody knows."""
        if psutil := _psutil():
            fields = psutil.cpu_times()._asdict()
        elif (_PROC / "stat").exists():
            names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
            _, *numbers = (_PROC / "stat").read_text().split("\n", 1)[0].split()
            fields = dict(zip(names, map(float, numbers), strict=False))
        else:
            return None
        total = sum(v for name, v in fields.items() if not name.startswith("guest"))
        return cls(total - fields["idle"] - fields.get("iowait", 0.0), total)


def _memory() -> dict[str, float]:
    if psutil := _psutil():
        return {
            "cpu_vm_percent": psutil.virtual_memory().percent,
            "cpu_swap_percent": psutil.swap_memory().percent,
            "process_bytes": float(psutil.Process().memory_info().rss),
        }
    if not (_PROC / "meminfo").exists():
        return {}
    lines = [line.split() for line in (_PROC / "meminfo").read_text().splitlines()]
    kilobytes = {words[0].rstrip(":"): float(words[1]) for words in lines}
    pages = int((_PROC / "self" / "statm").read_text().split()[1])
    return {
        "cpu_vm_percent": _used(kilobytes, "MemAvailable", "MemTotal"),
        "cpu_swap_percent": _used(kilobytes, "SwapFree", "SwapTotal"),
        "process_bytes": float(pages * os.sysconf("SC_PAGE_SIZE")),
    }


def _used(kilobytes: Mapping[str, float], free: str, total: str) -> float:
    whole = kilobytes.get(total, 0.0)
    return 100 * (1 - kilobytes[free] / whole) if whole else 0.0


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None
