"""What compiling costs: how long the first step takes, how many graphs there are."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contenders import Contender
from .problems import Problem
from .timing import Clock


def first_step(
    problem: Problem, contender: Contender, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """In a fresh process: build a contender and make one step, then some more.

    Args:
        problem: What to train.
        contender: Who trains.
        clock: What to time with.

    Returns:
        ``seconds`` until the first step's loss can be read, less those of a later step; ``graphs``
        compiled for it, and ``later``.
    """
    for library in contender.needs:
        importlib.import_module(library)
    start = clock()
    training = contender.build(problem, time.perf_counter)
    training.block(4 if contender.name.endswith("fit") else 1)
    training.loss()
    seconds = clock() - start
    count = training.graphs or (lambda: 0)
    graphs = count()
    once = training.block(8) / 8
    return {"seconds": seconds - once, "graphs": graphs, "later": count() - graphs}


def cold_and_warm(measure: Callable[[dict[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """The same in two processes in turn, which share caches that were empty before.

    Args:
        measure: Calls `first_step` in a process with that environment; gives an ``error`` instead
            where that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **empty_caches(Path(folder))}
        cold = measure(environment)
        warm = cold if "error" in cold else measure(environment)
    if "error" in warm:
        return {"error": warm["error"]}
    return {
        "cold": cold["seconds"],
        "warm": warm["seconds"],
        "graphs": cold["graphs"],
        "later": cold["later"] + warm["later"],
    }


def empty_caches(folder: Path) -> dict[str, str]:
    """The environment in which PyTorch, fnloop and JAX keep what they compile in a folder."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
