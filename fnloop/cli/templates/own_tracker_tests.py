"""``NewTracker`` changes no bit of a run, and has its numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.templates.own_tracker import NewTracker


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def data() -> fl.Batches:
    return fl.Batches(torch.rand(8, 2, generator=torch.Generator().manual_seed(0)), 4)


def state() -> fl.State:
    return STEP.init(lambda: nn.Linear(2, 1), seed=0)


def test_it_changes_nothing(tmp_path: Path) -> None:
    tracked = lambda: [fl.track(NewTracker(tmp_path / "a.txt"))]  # noqa: E731
    fl.testing.check_effects(STEP, state(), data(), tracked)


def test_it_has_the_numbers_of_the_history(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    tracked = fl.track(NewTracker(path), every=1)
    history = fl.History(every=1)
    for _ in fl.run(STEP, state(), data(), steps=4, callbacks=[tracked, history]):
        pass
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [float(line[2]) for line in lines if line[1:2] == ["loss"]]
    torch.testing.assert_close(losses, history["loss"], rtol=1e-5, atol=0)
    assert lines[0][0] == "config" and lines[-1] == ["completed"]
