"""A backbone that is frozen, and one that is thawed by a callback."""

import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn
from torch.nn import functional as F

from tests.lightning.modules.plain import Plain


class Frozen(Plain):
    """Features of a fixed network, in evaluation mode and without gradients."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.backbone.requires_grad_(False)
        self.net = nn.Linear(32, 10)

    def forward(self, x):
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(x).flatten(1)
        return self.net(features)

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=1e-2)


class Finetuned(Plain):
    """The backbone joins in the second epoch, at a lower rate."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.net = nn.Linear(32, 10)

    def forward(self, x):
        return self.net(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        trained = filter(lambda p: p.requires_grad, self.parameters())
        return torch.optim.SGD(trained, lr=0.2, momentum=0.9)

    def configure_callbacks(self):
        return [BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.5)]
