"""A wrong name says which one is right."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fnloop as fl

OPTIMIZER = torch.optim.AdamW(nn.Linear(1, 1).parameters())


@pytest.mark.parametrize(
    ("family", "name", "hint"),
    [
        ("", "Trainer", r"Use fl\.fit\(step, state, data, epochs"),
        ("", "LightningModule", r"fl\.lightning\.step"),
        ("", "EarlyStopping", r"Use fl\.early_stopping\."),
        ("", "ModelCheckpoint", r"Use fl\.checkpoint\(folder"),
        ("", "LearningRateMonitor", "reports the learning rate by itself"),
        ("", "ModelSummary", r"Use fl\.summary\(step, state, batch\)"),
        ("trackers", "ThroughputMonitor", r"Use fl\.trackers\.throughput\(\)"),
        ("", "device_stats", r"Use fl\.trackers\.device_stats\."),
        ("", "DataLoader", r"Use fl\.Batches"),
        ("", "Adam", r"Use fl\.optim\.adam\."),
        ("", "adamw", r"Use fl\.optim\.adamw\."),
        ("", "cosine", r"Use fl\.schedules\.cosine\."),
        ("", "accuracy", r"Use fl\.metrics\.accuracy\."),
        ("", "check_pure", r"Use fl\.testing\.check_pure\."),
        ("", "fitt", r"Did you mean fl\.fit\?"),
        ("", "earlystoping", r"Did you mean fl\.early_stopping\?"),
        ("optim", "AdamW", r"Use fl\.optim\.adamw\."),
        ("optim", "clip_grad_norm_", r"fl\.optim\.clip_by_norm"),
        ("optim", "cosine", r"Use fl\.schedules\.cosine\."),
        ("optim", "fit", r"Use fl\.fit\."),
        ("schedules", "CosineAnnealingLR", r"fl\.schedules\.cosine\(peak"),
        ("schedules", "OneCycle", r"Use fl\.schedules\.one_cycle\."),
        ("metrics", "Accuracy", r"Use fl\.metrics\.accuracy\."),
        ("metrics", "AUROC", "from_torchmetrics"),
        ("trackers", "WandbLogger", r"subclass fl\.trackers\.Tracker"),
        ("trackers", "csv", r"Use fl\.trackers\.CSV\."),
        ("testing", "check_purity", r"Did you mean fl\.testing\.check_pure\?"),
    ],
)
def test_a_name_that_is_not_there(family: str, name: str, hint: str) -> None:
    module = getattr(fl, family) if family else fl
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'. .*{hint}"):
        getattr(module, name)


def test_what_looks_for_names_still_works() -> None:
    assert not hasattr(fl, "__wrapped__") and not hasattr(fl, "Trainer")
    assert not hasattr(fl.optim, "_private")
    assert getattr(fl, "something_else", 3) == 3
    with pytest.raises(ImportError):
        exec("from fnloop import Trainer")
    assert pickle.loads(pickle.dumps(fl.fit)) is fl.fit is copy.copy(fl.fit)


def loss(model, batch):
    return model(batch).mean()


def run(**arguments):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    fl.fit(step, step.init(nn.Linear(1, 1)), [torch.ones(2, 1)], **arguments)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: run(max_epochs=1), r"fit got .*'max_epochs'\. Use epochs="),
        (lambda: run(epochs=1, callback=[]), r"'callback'\. Use callbacks="),
        (lambda: run(epochs=1, verbose=0), r"'verbose'\. Use progress=False"),
        (lambda: run(epoch=1), "Use epochs="),
        (lambda: run(epochs=1, val_dataloaders=[]), r"fl\.validate\(loss, data\)"),
        (lambda: run(epochs=1, model=None), r"step\.init\(model\)"),
        (lambda: fl.optim.adamw(learning_rate=1e-3), r"adamw got .*Use lr="),
        (lambda: fl.optim.sgd(0.1, mometum=0.9), "Did you mean momentum="),
        (lambda: fl.optim.clip_by_norm(clipnorm=1.0), "Use max_norm="),
        (lambda: fl.schedules.cosine(1e-3, total_steps=10), "Use steps="),
        (lambda: fl.schedules.cosine(learning_rate=1e-3, steps=10), "Use peak="),
        (lambda: fl.early_stopping(metric="val/loss"), r"early_stopping got .*Use monitor="),
        (lambda: fl.checkpoint(dirpath="x"), r"checkpoint got .*Use folder="),
        (lambda: fl.progress(interval=1), r"progress got .*It takes every_seconds, names, file"),
        (lambda: fl.Batches([1, 2], batchsize=1), r"Batches got .*Use batch_size="),
        (lambda: fl.update(fl.optim.sgd(0.1), lr=0.1), r"update got .*It takes optimizer, name"),
        (lambda: fl.ema(beta=0.9), "Use decay="),
        (lambda: fl.accumulate(steps=2), "It takes k"),
        (
            lambda: fl.compile(loss, fullgraph=True),
            "It takes step, donate, steps, mode, backend, dynamic",
        ),
        (lambda: fl.track(fl.trackers.CSV("x"), logger=1), "subclass fl.trackers.Tracker"),
    ],
)
def test_a_keyword_that_is_not_there(call, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        call()


def test_an_error_inside_is_left_alone() -> None:
    def wrong(model, batch):
        return model(batch, scale=1)

    step = fl.pipe(wrong, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(
        TypeError, match=r"forward\(\) got an unexpected keyword argument 'scale'\n"
    ):
        fl.fit(step, step.init(nn.Linear(1, 1)), [torch.ones(2, 1)], epochs=1)


def test_a_stage_of_ones_own_is_explained_too() -> None:
    @fl.tree
    class scaled(fl.base.StepStage):
        wraps = "step"
        inner: object
        factor: float = 1.0

    with pytest.raises(TypeError, match=r"scaled got .*'factr'. Did you mean factor="):
        scaled(None, factr=2.0)
