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
except fl.CompileError as error:
    print(error)
"""


FOUND = """
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def compiled_with(cache: Path, then: str = "") -> str:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT + then]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_second_start_finds_the_graph(tmp_path: Path) -> None:
    assert compiled_with(tmp_path, then=FOUND) == "0 1\n"
    assert compiled_with(tmp_path, then=FOUND) == "1 0\n"


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
    for pattern in ("*.main.so", "*.py"):
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
