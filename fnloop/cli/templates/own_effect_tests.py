"""``NewEffect`` changes no bit of a run, and writes what it says."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.templates.own_effect import NewEffect


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def data() -> fl.Batches:
    return fl.Batches(torch.rand(8, 2, generator=torch.Generator().manual_seed(0)), 4)


def state() -> fl.State:
    return STEP.init(lambda: nn.Linear(2, 1), seed=0)


def test_it_changes_nothing(tmp_path: Path) -> None:
    fl.testing.check_effects(STEP, state(), data(), lambda: [NewEffect(tmp_path / "a.txt")])


def test_it_writes_each_loss_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "losses.txt"
    fl.fit(STEP, state(), data(), epochs=1, callbacks=[NewEffect(path)], progress=False)
    first, second, end = path.read_text(encoding="utf-8").splitlines()
    assert first.split()[0] == "1" and second.split()[0] == "2" and end == "completed"
    assert float(second.split()[1]) > 0
