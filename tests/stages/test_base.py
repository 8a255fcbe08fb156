"""Stages of one's own: hyperparameters, and errors of wrongly written classes."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import nn

import fnloop as fl
from fnloop import testing


def loss(model, batch):
    return model(batch).square().mean()


@fl.tree
class Noise(fl.GradStage):
    wraps: ClassVar[str] = "grad"
    label: ClassVar[str] = "noise"
    inner: Any
    std: Any = 0.01
    shift: Any = 0.0

    def __call__(self, state, batch):
        std, shift = self.at(state, "std", "shift")
        after, grads = self.inner(state, batch)
        with fl.randomness(state, "noise"):
            mean = grads.mean.map_named(lambda g: g + shift + std * torch.randn_like(g))
        last = fl.Last(torch.as_tensor(std, dtype=torch.float64))
        return after, grads.replace(mean=mean, metrics={**grads.metrics, "noise.std": last})


BATCH = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])


def noisy(std):
    noise = functools.partial(Noise, std=std)
    return fl.pipe(loss, fl.grad, noise, fl.update(fl.optim.sgd(0.01)))


def start(step, seed=0):
    return step.init(lambda: nn.Linear(2, 1), seed)


def test_a_stage_has_schedules():
    step = noisy(fl.schedules.linear(1.0, 0.0, steps=4))
    state, values = start(step), []
    for _ in range(5):
        state, metrics = step(state, BATCH)
        values.append(float(metrics["noise.std"]))
    assert values == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_numbers_and_tensors_are_values_too():
    tensor = torch.tensor(0.5)
    stage = Noise(fl.grad(loss), 2, tensor)
    assert stage.at(start(stage), "shift", "std") == [tensor, 2]


def test_a_stage_with_a_schedule_keeps_the_laws():
    step = noisy(fl.schedules.linear(1.0, 0.0, steps=4))
    testing.check_compiles(step, start(step), [BATCH, BATCH])
    testing.check_vmaps(step, [start(step, seed) for seed in range(3)], BATCH)
    testing.check_layouts(step, start(step), BATCH)
    testing.check_repeatable(step, start(step), BATCH)
