"""What ``pytorch-lightning`` does with the modules: the numbers that the adapter is held to."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from tests.lightning.modules import (
    batches,
    gan,
    halves,
    hooked,
    measured,
    plain,
    scheduled,
    transfer,
)

MODULES: dict[str, Any] = {
    "plain": plain.Plain,
    "halves": halves.Halves,
    "gan": gan.GAN,
    "by step": scheduled.ByStep,
    "by epoch": scheduled.ByEpoch,
    "by metric": scheduled.ByMetric,
    "objects": measured.Objects,
    "collection": measured.Collection,
    "frozen": transfer.Frozen,
    "finetuned": transfer.Finetuned,
    "custom batches": batches.Custom,
    "several loaders": batches.Several,
    "hooked": hooked.Hooked,
}
EPOCHS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "by step": {"gradient_clip_val": 0.5},
    "plain": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "hooked": {"gradient_clip_val": 0.5},
}


def module(name: str) -> Any:
    """A module with its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MODULES[name]()


class Recorded(NamedTuple):
    """Lightning's numbers.

    Attributes:
        batches: What was logged, of each batch; and the loss as ``"loss"``.
        epochs: All metrics at the end of each epoch.
        weights: The last parameters and buffers.
    """

    batches: list[dict[str, float]]
    epochs: list[dict[str, float]]
    weights: dict[str, Tensor]


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.batches: list[dict[str, float]] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        seen = {
            name.removesuffix("_step"): float(value)
            for name, value in trainer.logged_metrics.items()
            if not name.endswith("_epoch")
        }
        if outputs:
            seen["loss"] = float(outputs["loss"])
        self.batches.append(seen)

    def on_train_end(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        self._note(trainer)

    def on_fit_end(self, trainer, pl_module):
        self._note(trainer)

    def _note(self, trainer):
        seen = {
            name.removesuffix("_epoch"): float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith("_step")
        }
        if seen:
            self.epochs.append(seen)


def record(name: str, **more: Any) -> Recorded:
    """Train one of the modules by Lightning itself."""
    return trained(module(name), **{**SETTINGS.get(name, {}), **more})


def trained(given: Any, *data: Any, **more: Any) -> Recorded:
    """Train a module by Lightning itself, on its own data or this; the given one is not changed."""
    own = copy.deepcopy(given)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            callbacks=[recorder],
            **more,
        )
        trainer.fit(own, *data)
    weights = {n: t.detach().clone() for n, t in own.state_dict().items()}
    return Recorded(recorder.batches, recorder.epochs, weights)
