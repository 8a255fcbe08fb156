"""One rank of two is killed with SIGKILL, at each call to the disk of a save and of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("killed_ranks.py")


def kills(what, place, stride, seconds, plan):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(place), str(stride), plan],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])["kills"]


@pytest.mark.parametrize("plan", ["zero2", "tensor"])
def test_a_rank_that_is_killed_while_it_saves_leaves_the_old_or_the_new_checkpoint(tmp_path, plan):
    assert kills("saves", tmp_path, 9, 300, plan) > 15


def test_a_run_of_which_a_rank_was_killed_ends_in_the_same_bits(tmp_path):
    assert kills("runs", tmp_path, 41, 300, "zero2") > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "plan", "stride"),
    [("saves", "zero2", 1), ("saves", "tensor", 1), ("runs", "zero2", 1), ("runs", "tensor", 17)],
)
def test_a_rank_that_is_killed_at_any_call(tmp_path, what, plan, stride):
    assert kills(what, tmp_path, stride, 3600, plan) > 80 // stride
