"""Schedulers by step, by epoch, and by a metric."""

import torch

from tests.lightning.modules.plain import Plain


class ByStep(Plain):
    """A one-cycle policy, which moves momentum too."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=3e-2, total_steps=self.trainer.estimated_stepping_batches
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class ByEpoch(Plain):
    """A warm-up and a cosine by epochs, and two parameter groups."""

    def configure_optimizers(self):
        weights = [p for p in self.parameters() if p.ndim > 1]
        biases = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.SGD(
            [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.2}],
            lr=0.1,
            momentum=0.9,
            nesterov=True,
        )
        schedulers = torch.optim.lr_scheduler
        warmup = schedulers.LinearLR(optimizer, start_factor=0.1, total_iters=1)
        cosine = schedulers.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)
        return [optimizer], [schedulers.SequentialLR(optimizer, [warmup, cosine], milestones=[1])]


class ByMetric(Plain):
    """Lowers the rate when the validation loss has not halved."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, factor=0.1, threshold=0.5, min_lr=1e-3
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss", "strict": True},
        }
