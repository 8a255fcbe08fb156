"""Metric objects, and a collection of them."""

import torch
import torchmetrics
from torch.nn import functional as F

from tests.lightning.modules.plain import Plain


class Objects(Plain):
    """One object for each split; training's is computed at the end of the epoch."""

    def __init__(self):
        super().__init__()
        kind = torchmetrics.classification.MulticlassAccuracy
        self.train_acc = kind(num_classes=10, average="micro", validate_args=False)
        self.val_acc = kind(num_classes=10, average="micro", validate_args=False)
        self.outputs = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.train_acc.update(logits, y)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss)
        return {"loss": loss, "logits": logits}

    def on_train_epoch_end(self):
        self.log("train_acc", self.train_acc.compute())
        self.train_acc.reset()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.val_acc(logits, y)
        self.outputs.append(F.cross_entropy(logits, y, reduction="none"))
        self.log("val_acc", self.val_acc, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self):
        self.log("val_loss", torch.cat(self.outputs).mean())
        self.outputs.clear()


class Collection(Plain):
    """Collections with prefixes, logged as dicts."""

    def __init__(self):
        super().__init__()
        kinds = torchmetrics.classification
        settings = {"num_classes": 10, "validate_args": False}
        metrics = torchmetrics.MetricCollection(
            {
                "acc": kinds.MulticlassAccuracy(average="micro", **settings),
                "acc_of_two": kinds.MulticlassAccuracy(average="micro", top_k=2, **settings),
            }
        )
        self.train_metrics = metrics.clone(prefix="train_")
        metrics.add_metrics({"f1": kinds.MulticlassF1Score(average="macro", **settings)})
        self.val_metrics = metrics.clone(prefix="val_")

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.train_metrics(logits, y)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.val_metrics.update(self(x), y)

    def on_validation_epoch_end(self):
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()
