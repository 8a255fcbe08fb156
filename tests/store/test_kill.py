"""Processes that are killed at any time: the run ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .preloaded import faultio

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
__all__ = ["faultio"]


def ran(tmp_path: Path, *arguments: Any, timeout: int = 300, **environment: str) -> dict[str, int]:
    """What `killed_runs.py` counts."""
    script = Path(__file__).with_name("killed_runs.py")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    print(f"\n{arguments}: {seen} in {time.monotonic() - began:.0f} s")
    assert os.listdir(tmp_path) in ([], ["base"])
    return seen


def check(seen: dict[str, int], runs: int) -> None:
    assert seen["equal"] == runs
    assert seen["kills"] >= 1.8 * runs
    assert seen["resumed"] >= runs / 2, "most of them had something to go on from"
    assert seen["killed in load"] >= runs / 20 and seen["killed in save"] >= runs / 20


def test_a_hundred_runs_that_are_killed_end_as_if_they_were_not(tmp_path: Path) -> None:
    check(ran(tmp_path, "random", 100, 0), 100)


@pytest.mark.slow
def test_a_thousand_runs_that_are_killed_end_as_if_they_were_not(tmp_path: Path) -> None:
    seen = ran(tmp_path, "random", 1000, 1, timeout=3600)
    check(seen, 1000)
    assert seen["killed in delete"] >= 10


def test_a_kill_at_each_system_call_of_a_run_that_saves(tmp_path: Path, faultio: Path) -> None:
    seen = ran(tmp_path, "each", LD_PRELOAD=str(faultio))
    assert seen["kills"] > 150
    assert seen["step 1 was left"] > 50 and seen["step 2 was left"] > 20
