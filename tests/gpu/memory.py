"""The most memory that a step takes on a GPU, in sizes of the parameters."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fnloop as fl

from .speed import Problem, by_hand, compiled, donating, eager, ungraphed

LAYERS, WIDTH = 6, 2048


def wide(device: str) -> Problem:
    """Six layers of 2048 x 2048, 25 million parameters, a batch of 16."""

    def build() -> nn.Module:
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        return nn.Sequential(*layers)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, WIDTH, generator=generator)
    labels = torch.randint(WIDTH, (16,), generator=generator)
    return Problem(build, [(x.to(device), labels.to(device))])


CONTENDERS: dict[str, Callable[[Problem, str], Any]] = {
    "by hand": by_hand,
    "fnloop, eager": eager,
    "fnloop, eager, as fit runs it": lambda problem, device: _fitted(problem, device),
    "fnloop, compiled": compiled,
    "fnloop, compiled, donating": donating,
    "fnloop, compiled, donating, no CUDA graph": ungraphed,
}


def peaks() -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """For each contender, what is held between steps and the peak, in sizes of the parameters.

    Returns:
        The figures, and what the others raised, by name.
    """
    problem = wide("cuda")
    size = 4 * LAYERS * WIDTH * (WIDTH + 1)
    found: dict[str, tuple[float, float]] = {}
    failed: dict[str, str] = {}
    for name, make in CONTENDERS.items():
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        try:
            step = make(problem, "cuda")
            for _ in range(5):  # a CUDA graph is recorded at the second call
                step(problem.batches[0])
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() - before
            for _ in range(5):
                step(problem.batches[0])
            torch.cuda.synchronize()
            found[name] = (held / size, (torch.cuda.max_memory_allocated() - before) / size)
            grown = torch.cuda.memory_allocated() - before - held
            if grown > 0.01 * size:
                failed[name] = f"five steps leave {grown} bytes more"
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        step = None
    return found, failed


def _fitted(problem: Problem, device: str) -> Any:
    from .speed import loss

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3))).donating()
    state = step.init(problem.build().to(device))

    def one(batch: Any) -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return one
