"""PyTorch's profiler writes nothing to standard error."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, torch
from fnloop._torch.profiler_log import quiet_profiler
for _ in range(2):
    with quiet_profiler(), torch.profiler.profile(profile_memory=True):
        torch.ones(3) + 1
assert "KINETO_LOG_LEVEL" not in os.environ
"""


def test_it_is_quiet():
    env = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
