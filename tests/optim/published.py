"""The problem on which the numbers of authors' implementations were recorded.

In float64, by their classes as they are, each with a loop of::

    for t in range(steps):
        for p in params.values():
            p.grad = gradient(p.detach(), t)
        optimizer.step()

What is recorded of a parameter are its first three values and its norm.
"""

from __future__ import annotations

import pytest
import torch

from fnloop.values.tensors import Tensors

SHAPES = {"w": (4, 3), "b": (3,), "k": (2, 3, 2)}


def start():
    def drawn(i, shape):
        numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return (1.7 * numbers + i).sin().view(shape)

    return {name: drawn(i, shape) for i, (name, shape) in enumerate(SHAPES.items())}


def gradient(p, t):
    return p + (3 * p + t).cos()


def run(optimizer, steps):
    """The parameters and the memory after some steps."""
    params = Tensors(start())
    memory = optimizer.init(params)
    for t in range(steps):
        grads = params.map_named(lambda p, t=t: gradient(p, t))
        params, memory = optimizer.apply(grads, memory, params, t, True)
    return params, memory


def check(params, recorded, rel=1e-8):
    found = {n: [*p.flatten()[:3].tolist(), float(p.norm())] for n, p in params.items()}
    for name, numbers in recorded.items():
        assert found[name] == pytest.approx(numbers, rel=rel, abs=1e-9), name
