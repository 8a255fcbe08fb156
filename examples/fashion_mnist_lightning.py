"""``examples/fashion_mnist.py`` in PyTorch Lightning, for comparison.

It takes the network, the files and the order of the batches from there::

    pip install pytorch-lightning
    python examples/fashion_mnist_lightning.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from fashion_mnist import BATCH, EPOCHS, PEAK, network, options_in, pictures, shuffled
from torch import Tensor
from torch.utils.data import DataLoader

import fnloop as fl


class Classifier(pl.LightningModule):
    """The network with its training, its loaders, and a list of its numbers by epoch."""

    def __init__(self, folder: Path, epochs: int) -> None:
        super().__init__()
        self.model, self.epochs = network(), epochs
        self.training_data, self.test_data = pictures(folder, "train"), pictures(folder, "t10k")
        self.rows: list[dict[str, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        value = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("loss", value, on_step=False, on_epoch=True)
        return value

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        scores = self.model(batch[0])
        self.log("test/loss", F.cross_entropy(scores, batch[1]))
        self.log("test/accuracy", (scores.argmax(1) == batch[1]).float().mean())

    def on_train_epoch_end(self) -> None:
        numbers = self.trainer.callback_metrics
        self.rows.append({name: float(value) for name, value in numbers.items()})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=PEAK)
        steps = self.epochs * math.ceil(len(self.training_data) / BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> Any:
        return shuffled(self.training_data, self.current_epoch)

    def val_dataloader(self) -> Any:
        return DataLoader(self.test_data, 1000)


def trained(folder: Path, epochs: int = EPOCHS) -> Classifier:
    """Train, and test after each epoch; the weights at the start are fnloop's of seed 0."""
    module = Classifier(folder, epochs)
    start = fl.to_module(fl.grad(lambda model, batch: model(batch)).init(network, seed=0))
    module.model.load_state_dict(start.state_dict())
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module)
    return module


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_in(arguments, __doc__)
    begun = time.process_time()
    for epoch, row in enumerate(trained(options.folder, options.epochs).rows, 1):
        print(
            f"epoch {epoch}: loss {row['loss']:.6f}, test {row['test/loss']:.6f}, "
            f"accuracy {row['test/accuracy']:.4f}"
        )
    print(f"{time.process_time() - begun:.0f} s of CPU time")


if __name__ == "__main__":
    main()
