"""The laws of ``new_callback``, and what it adds in a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.templates.own_callback import new_callback


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def data() -> fl.Batches:
    return fl.Batches(torch.rand(8, 2, generator=torch.Generator().manual_seed(0)), 3)


def state() -> fl.State:
    return STEP.init(lambda: nn.Linear(2, 1), seed=0)


def test_laws() -> None:
    callback = new_callback("loss")
    after, metrics = STEP(state(), torch.ones(3, 2))
    print(fl.testing.check_laws(callback, callback.init(after, metrics), metrics))
    fl.testing.check_resumes(STEP, state(), data(), steps=4, callbacks=lambda: [callback])


def test_it_adds_the_lowest_loss() -> None:
    losses = list[float]()
    for _, metrics in fl.run(STEP, state(), data(), steps=6, callbacks=[new_callback("loss")]):
        losses.append(float(metrics["loss"]))
        assert float(metrics["new_callback"]) == min(losses)
