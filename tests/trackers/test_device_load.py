"""`fl.trackers.device_stats`: from psutil and from /proc."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.effects.effect import Run
from fnloop.trackers import device_load
from fnloop.values.start import start


def opened(**arguments):
    effect = fl.trackers.device_stats(**arguments)
    run = Run(step=None, state=start(nn.Linear(2, 1)))
    effect.open(run)
    return run


def spend(seconds):
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        torch.ones(64, 64) @ torch.ones(64, 64)


@pytest.mark.lightning("C16")
@pytest.mark.parametrize("installed", [True, False])
def test_what_is_used(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    psutil = pytest.importorskip("psutil")
    if not installed:
        monkeypatch.setattr(device_load, "_psutil", lambda: None)
    run = opened(every_seconds=0)
    spend(0.05)
    found = run.measured()
    assert found.keys() == {
        "device/cpu_percent",
        "device/cpu_vm_percent",
        "device/cpu_swap_percent",
        "device/process_bytes",
    }
    assert 0 < found["device/cpu_percent"] <= 100
    own = psutil.Process().memory_info().rss
    assert found["device/process_bytes"] == pytest.approx(own, rel=0.2)
    assert found["device/cpu_vm_percent"] == pytest.approx(psutil.virtual_memory().percent, abs=10)


def test_it_looks_no_more_often_than_it_is_told() -> None:
    run = opened(every_seconds=3600.0)
    assert run.measured() == run.measured()
    spend(0.02)
    assert run.measured() == run.measured()
    assert opened(cpu=False).measured() == {}
    with pytest.raises(ValueError, match="every_seconds"):
        opened(every_seconds=-1)


def test_where_nobody_knows_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(device_load, "_PROC", tmp_path)
    assert opened().measured() == {}
