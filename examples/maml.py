"""MAML: parameters from which a few steps on ten points learn a sine (Finn et al., 2017, 5.1).

    python maml.py                  # second order: differentiates through the inner steps
    python maml.py --first-order    # the inner steps are taken as given

Each task is a sine of its own amplitude and phase. The outer loss of a task is the error on other
points after the inner steps, and what is learned is where these begin.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fnloop as fl

TASKS, POINTS, INNER = 25, 10, 3
Points = tuple[Tensor, Tensor]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


def sines(n: int, generator: torch.Generator) -> tuple[Points, Points]:
    """Points of `n` sines to learn from, and others to evaluate with: float32[n, POINTS, 1]."""
    amplitude = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=generator)
    phase = math.pi * torch.rand(n, 1, 1, generator=generator)
    x = 10 * torch.rand(n, 2 * POINTS, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return (x[:, :POINTS], y[:, :POINTS]), (x[:, POINTS:], y[:, POINTS:])


def loss(model: nn.Module, batch: Points) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


inner = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.02)))
start = inner.init(network, seed=0)


def after(params: fl.Tensors, learn: Points, evaluate: Points) -> Tensor:
    """The outer loss of one task."""
    adapted = fl.unroll(inner, start.replace(params=params), [learn] * INNER)
    return adapted.apply(lambda model: loss(model, evaluate))


def first_order(params: fl.Tensors, learn: Points, evaluate: Points) -> Tensor:
    """The same value; its derivative is that of the loss at the adapted parameters."""
    adapted = fl.unroll(inner, start.replace(params=params), [learn] * INNER)
    moved = adapted.params.sub(params).detach()
    here = start.replace(params=params.add(moved))
    return here.apply(lambda model: loss(model, evaluate))


def train(outer=after, iterations: int = 400, seed: int = 0) -> fl.Tensors:
    """The initial parameters after some outer steps of Adam."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.func.vmap(torch.func.grad(outer), in_dims=(None, 0, 0))
    params, adam = start.params, fl.optim.adam(1e-3)
    memory = adam.init(params)
    for i in range(iterations):
        each = gradients(params, *sines(TASKS, generator))
        updates, memory = adam.update(fl.tree_map(lambda g: g.mean(0), each), memory, params, i)
        params = params.add(updates)
    return params


def error(params: fl.Tensors, seed: int = 1) -> float:
    """The mean error of 200 tasks after the inner steps."""
    tasks = sines(200, torch.Generator().manual_seed(seed))
    return float(torch.func.vmap(after, in_dims=(None, 0, 0))(params, *tasks).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-order", action="store_true")
    parser.add_argument("--iterations", type=int, default=400)
    given = parser.parse_args()
    print(f"error after {INNER} steps from random parameters: {error(start.params):.2f}")
    learned = train(first_order if given.first_order else after, given.iterations)
    print(f"error after {INNER} steps from what was learned: {error(learned):.2f}")
