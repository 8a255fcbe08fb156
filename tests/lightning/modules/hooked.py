"""Hooks between the parts of a step."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from tests.lightning.modules.parts import loader, network


class Hooked(pl.LightningModule):
    """Logs the gradient's norm, clips in its own way, and keeps a slow copy of itself."""

    def __init__(self):
        super().__init__()
        self.net, self.slow = network(), network().requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y) + 0.1 * F.mse_loss(self.net(x), self.slow(x))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer):
        norms = [p.grad.norm() for p in self.net.parameters()]
        self.log("grad_norm", torch.stack(norms).norm())

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        nn.utils.clip_grad_value_(self.net[0].parameters(), 0.01)

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen += len(batch[0])
        for slow, p in zip(self.slow.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(p, 0.1)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "train_loss_epoch"}

    def train_dataloader(self):
        return loader(0, 120)
