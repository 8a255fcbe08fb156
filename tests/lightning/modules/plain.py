"""A classifier as in Lightning's first tutorial."""

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from tests.lightning.modules.parts import loader, network


class Plain(pl.LightningModule):
    def __init__(self, lr: float = 1e-2, hidden: int = 16):
        super().__init__()
        self.save_hyperparameters()
        self.net = network(hidden)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(-1) == y).float().mean())

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_loss", F.cross_entropy(self(x), y))

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).argmax(-1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    def train_dataloader(self):
        return loader(0, 120)

    def val_dataloader(self):
        return loader(120, 200)

    def test_dataloader(self):
        return loader(120, 170)

    def predict_dataloader(self):
        return loader(120, 170)
