"""PyTorch Lightning: with what its trainer does by default, and bare."""

from __future__ import annotations

import collections
import contextlib
import logging
import tempfile
import warnings
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from .by_hand import adamw
from .loops import Clocked, Sized, Training, watched
from .problems import Problem
from .timing import Clock
from .with_fnloop import Screen

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    """A problem as a module; its optimizer goes on from fit to fit."""

    def __init__(self, problem: Problem, logs: bool) -> None:
        super().__init__()
        self.problem = problem
        self.model = problem.model()
        self.optimizer = adamw(self.model, fused=True)
        self.logs = logs
        self.numbers: list[float] = []
        self.losses: collections.deque[Tensor] = collections.deque(maxlen=problem.micro)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.problem.loss(self.model, batch)
        if self.logs:
            self.log("loss", loss, prog_bar=True)
        if self.problem.reads_loss:
            self.numbers.append(loss.item())
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer

    def loss(self) -> float:
        """Of the last step, over its micro-batches."""
        return sum(loss.item() for loss in self.losses) / len(self.losses)


def defaults(problem: Problem, clock: Clock) -> Training:
    """A progress bar that shows the loss, and a logger that writes CSV."""
    return _training(problem, clock, logs=True)


def bare(problem: Problem, clock: Clock) -> Training:
    """``barebones=True``: no bar, no logger."""
    return _training(problem, clock, logs=False)


def _training(problem: Problem, clock: Clock, logs: bool) -> Training:
    module = Module(problem, logs)
    folder = tempfile.TemporaryDirectory()

    def trainer() -> lightning.Trainer:
        common: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "accumulate_grad_batches": problem.micro,
            "precision": "bf16-mixed" if problem.bf16 else "32-true",
        }
        if not logs:
            return lightning.Trainer(**common, barebones=True)
        return lightning.Trainer(
            **common,
            default_root_dir=folder.name,
            logger=CSVLogger(folder.name),
            enable_checkpointing=False,  # it would write after the last step, which is not timed
            enable_model_summary=False,
        )

    def fit(batches: Clocked) -> None:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(Screen()),
            contextlib.redirect_stderr(Screen()),
        ):
            warnings.simplefilter("ignore")
            trainer().fit(module, train_dataloaders=batches)

    parts = [part for batch in problem.batches for part in problem.parts(batch)]
    return watched(problem, clock, fit, module.loss, parts, Sized)
