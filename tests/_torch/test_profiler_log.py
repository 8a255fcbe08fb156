"""A profile writes nothing to standard error: neither that it begins, nor of memory before it."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os
import torch
from torch import nn
import fnloop as fl

def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Dropout(0.1), nn.Linear(576, 64)
    )

adam = fl.update(fl.optim.adamw(fl.schedules.cosine(0.1, steps=100)))
step = fl.pipe(lambda model, x: model(x).square().mean(), fl.grad, adam, fl.ema(0.9))
found = fl.profile(step, step.init(network, seed=0), torch.randn(32, 1, 8, 8), steps=2)
assert found.operators
assert "KINETO_LOG_LEVEL" not in os.environ
"""


def test_it_is_quiet():
    env = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
