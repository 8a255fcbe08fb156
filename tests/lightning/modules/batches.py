"""Batches of a class of their own, and of several loaders."""

import torch
from torch.nn import functional as F

from tests.lightning.modules.parts import loader
from tests.lightning.modules.plain import Plain


class Samples:
    """A batch that is no tuple and no dict."""

    def __init__(self, examples):
        self.samples = torch.stack([x for x, _ in examples])
        self.targets = torch.stack([y for _, y in examples])


class Custom(Plain):
    """Moves its batches itself, and normalizes them on the device."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        if isinstance(batch, Samples):
            batch.samples = batch.samples.to(device)
            batch.targets = batch.targets.to(device)
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch.samples - 0.3) / 0.4, batch.targets

    def train_dataloader(self):
        return loader(0, 120, collate_fn=Samples)

    def val_dataloader(self):
        return loader(120, 200, collate_fn=Samples)


class Several(Plain):
    """Two loaders in training, of which one begins anew; two in validation."""

    def training_step(self, batch, batch_idx):
        (x, y), (other, _) = batch["labeled"], batch["unlabeled"]
        loss = F.cross_entropy(self(x), y)
        loss = loss + 0.1 * self(other).softmax(-1).square().sum(-1).mean()
        self.log("train_loss", loss, batch_size=len(x))
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))
        if dataloader_idx == 1:
            self.log("last_loss", F.cross_entropy(self(x), y), add_dataloader_idx=False)

    def train_dataloader(self):
        return {"labeled": loader(0, 64), "unlabeled": loader(64, 160)}

    def val_dataloader(self):
        return [loader(160, 180, 16), loader(180, 200, 16)]
