"""An autoencoder whose halves have optimizers of their own, stepped by hand."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from tests.lightning.modules.parts import loader


class Halves(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(64, 8), nn.Tanh())
        self.decoder = nn.Linear(8, 64)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        first, second = self.optimizers()
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        first.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        first.step()
        # The decoder is trained on two batches at once.
        if (batch_idx + 1) % 2 == 0:
            second.step()
            second.zero_grad()
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()
        self.log_dict({"train_loss": loss, "lr": first.param_groups[0]["lr"]})

    def configure_optimizers(self):
        first = torch.optim.SGD(self.encoder.parameters(), lr=0.5, momentum=0.9)
        second = torch.optim.Adam(self.decoder.parameters(), lr=1e-2)
        return [first, second], [torch.optim.lr_scheduler.StepLR(first, 1, gamma=0.5)]

    def train_dataloader(self):
        return loader(0, 120)
