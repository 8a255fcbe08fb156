"""Inductor's cache on disk: a second start finds the graph; it cannot be written or is damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fnloop.transforms.cache_errors import cache_fault

SCRIPT = """
import torch, fnloop as fl
step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
try:
    step = fl.compile(step)
    step(step.init(torch.nn.Linear(3, 1), seed=0), torch.ones(4, 3))
except fl.errors.CompileError as error:
    print(error)
"""


FOUND = """
import sys
found = "torch._inductor.compile_fx" not in sys.modules
from torch._dynamo.utils import counters
print(found, counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""

TRAINING = """
import hashlib, torch, fnloop as fl

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.GRU(4, 8, batch_first=True), torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.nn.functional.dropout(self.norm(self.layer(x)[0][:, -1]), 0.2)
        return self.head(hidden)

def loss(net, batch):
    return torch.nn.functional.cross_entropy(net(batch), torch.arange(6) % 3)

torch.manual_seed(0)
optimizer = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(0.01))
step = fl.compile(fl.pipe(loss, fl.grad, fl.update(optimizer), fl.ema(0.9)), donate=True)
state = step.init(Net(), seed=1)
for _ in range(5):
    state, metrics = step(state, torch.randn(6, 5, 4))
tensors = [*state.params.values(), *state.slots["ema"].values(), metrics["loss"].value()]
numbers = b"".join(t.detach().numpy().tobytes() for t in tensors)
print(hashlib.sha256(numbers).hexdigest())
"""


def compiled_with(cache: Path, then: str = "", script: str = SCRIPT) -> str:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", script + then]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_second_start_finds_the_graph(tmp_path: Path) -> None:
    assert compiled_with(tmp_path, then=FOUND) == "False 0 1\n"
    assert compiled_with(tmp_path, then=FOUND) == "True 0 0\n"
    shutil.rmtree(tmp_path / "fnloop")  # Inductor's own
    assert compiled_with(tmp_path, then=FOUND) == "False 1 0\n"


def test_a_second_start_trains_to_the_same_bits(tmp_path: Path) -> None:
    first, found, _ = compiled_with(tmp_path, then=FOUND, script=TRAINING).split(maxsplit=2)
    assert found == "False"
    assert compiled_with(tmp_path, then=FOUND, script=TRAINING).split() == [first, "True", "0", "0"]


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "cache").touch()
    cache = tmp_path / "cache" if place == "a file" else tmp_path / "cache" / "x"
    told = compiled_with(cache)
    assert f"keeps its files in {cache}" in told and "its cache fails" in told
    assert "TORCHINDUCTOR_CACHE_DIR=" in told and "delete the folder" in told


@pytest.mark.slow
def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert compiled_with(cache) == ""
    shutil.copytree(cache, tmp_path / "copy")
    for file in (cache / "fnloop").iterdir():
        file.write_text("garbage\n")
    assert compiled_with(cache) == ""
    for pattern in ("*.main.so", "*.py"):
        if pattern == "*.py":  # which only Inductor reads
            shutil.rmtree(cache / "fnloop")
        for file in cache.rglob(pattern):
            file.write_text("garbage\n")
        told = compiled_with(cache)
        assert f"keeps its files in {cache}" in told, told
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "copy", cache)


def test_other_errors_are_none_of_the_cache() -> None:
    assert cache_fault(FileNotFoundError(2, "no such file", "data.csv")) is None
    assert cache_fault(ImportError("no module named x")) is None
    assert cache_fault(ValueError("shapes")) is None
