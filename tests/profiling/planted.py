"""Steps with one bottleneck each, for profiles to find."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

import fnloop as fl

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 16, generator=GENERATOR)
Y = X.sum(1, keepdim=True)
BATCHES = fl.Batches((X, Y), batch_size=16)


def network():
    return nn.Sequential(
        nn.Linear(16, 32), nn.Sequential(nn.Tanh(), nn.Dropout(0.1)), nn.Linear(32, 1)
    )


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def reading(model, batch):
    x, y = batch
    errors = (model(x) - y).abs()
    return errors.mean(), {"worst": torch.tensor(errors.max().item())}


def fat(model, batch):
    x, y = batch
    points = model(x).repeat(128, 1)
    gaps = points - points.T  # f32[2048,2048], which nobody needs
    return gaps.square().mean() + (model(x) - y).square().mean()


@fl.tree
class Sleepy(fl.base.StepStage):
    wraps = "step"
    label = "sleepy"
    inner: Any

    def __call__(self, state, x):
        result = self.inner(state, x)
        time.sleep(0.03)
        return result


class Slow:
    """Data of which each batch takes its time."""

    def __iter__(self):
        for i in range(4):
            time.sleep(0.1)
            yield X[16 * i : 16 * i + 16], Y[16 * i : 16 * i + 16]


def made(loss=loss, *stages):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3)), fl.ema(0.99), *stages)
    return step, step.init(network, seed=0)
