"""Callbacks of Lightning, as what does the same here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fnloop.lightning.configured import Configured
from fnloop.lightning.tables import Tabled
from fnloop.lightning.translated import Owned, optimizer_of
from fnloop.loop.early_stopping import early_stopping
from fnloop.loop.every import every
from fnloop.optim.base import Optimizer
from fnloop.optim.labels import by_label
from fnloop.schedules.base import at

_INSTEAD = {
    "ModelCheckpoint": 'fl.checkpoint(folder, keep=3, monitor="val_loss")',
    "Timer": "fl.fit(..., budget=3600)",
    "StochasticWeightAveraging": "fl.pipe(run.step, fl.ema(fl.schedules.uniform(start)))",
    "WeightAveraging": "fl.pipe(run.step, fl.ema(0.999))",
    "EMAWeightAveraging": "fl.pipe(run.step, fl.ema(0.999))",
    "GradientAccumulationScheduler": "fl.accumulate(fl.schedules.by_epoch({0: 1, 4: 2}))",
    "LearningRateFinder": "fl.tuning.find_lr",
    "BatchSizeFinder": "fl.tuning.find_batch_size",
    "SpikeDetection": "fl.pipe(run.step, fl.guard(fl.rules.spike()))",
    "TQDMProgressBar": "fl.progress()",
    "RichProgressBar": "fl.progress()",
}
_NEEDLESS = ("LearningRateMonitor", "ModelSummary", "RichModelSummary")


class Finetuning(NamedTuple):
    """``BackboneFinetuning``: the epoch at which ``backbone`` is trained, and its learning rate.

    Attributes:
        callback: The callback, for its settings.
        epoch: It is frozen before.
    """

    callback: Any
    epoch: int

    @classmethod
    def of(cls, callback: Any, module: Any) -> Finetuning:
        """Check that the backbone can be frozen here."""
        backbone = getattr(module, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ValueError(
                f"BackboneFinetuning freezes the module's attribute backbone, and "
                f"{type(module).__name__} has none."
            )
        if any([isinstance(m, _BatchNorm) for m in backbone.modules()]):
            raise ValueError(
                "BackboneFinetuning goes on training the BatchNorm layers of a frozen backbone, "
                "and here they are frozen with it. Say what is meant: "
                'fl.grad(frozen=fl.schedules.by_epoch({0: "backbone", 3: None})), as in the how-to '
                "page Finetune."
            )
        return cls(callback, callback.unfreeze_backbone_at_epoch)

    def optimizer(
        self,
        given: Configured,
        names: Mapping[int, str],
        per_epoch: int | None,
        epochs: int | None,
    ) -> Owned:
        """The optimizer, with a group of its own for what the module's leaves out.

        Args:
            given: The module's, of its head.
            names: All parameters that are trained at some time, by their ids.
            per_epoch, epochs: As for `schedules_of`.
        """
        head = optimizer_of(given, names, per_epoch, epochs)
        rest = [n for n in names.values() if n.startswith("backbone.") and n not in head.names]
        if not rest:
            return head
        if len(head.groups) > 1:
            raise ValueError("BackboneFinetuning takes an optimizer with one parameter group here.")
        if per_epoch is None or epochs is None:
            raise ValueError(
                "BackboneFinetuning changes a learning rate by epochs. Give the data and the "
                "number of epochs: fl.lightning.step(module, data, epochs=10)."
            )
        (lr,) = [v for n, v in head.optimizer.hyperparameters().items() if n.endswith("lr")]
        heads = [float(at(lr, epoch * per_epoch)) for epoch in range(epochs)]
        rates = torch.tensor(self.rates(heads), dtype=torch.float64)
        own: Optimizer = dataclasses.replace(head.optimizer, lr=Tabled(1.0, rates, per_epoch))  # type: ignore[type-var]
        labels = {**dict.fromkeys(head.names, "head"), **dict.fromkeys(rest, "backbone")}
        both = by_label({"head": head.optimizer, "backbone": own}, labels)
        return Owned(both, (("head.", head.names), ("backbone.", tuple(rest))), head.counts)

    def rates(self, heads: Sequence[float]) -> list[float]:
        """The backbone's learning rate in each epoch, by those of the head."""
        own, found, before = self.callback, list[float](), 0.0
        for epoch, head in enumerate(heads):
            if epoch == self.epoch:
                first = own.backbone_initial_lr
                before = head * own.backbone_initial_ratio_lr if first is None else first
            elif epoch > self.epoch:
                before = own.lambda_func(epoch + 1) * before
                before = head if own.should_align and before > head else before
            found.append(before)
        return found


class TranslatedCallbacks(NamedTuple):
    """What callbacks of Lightning become."""

    callbacks: list[Any]
    finetuning: Finetuning | None


def callbacks_of(given: Any, module: Any) -> TranslatedCallbacks:
    """Translate callbacks of Lightning; those of fnloop are kept.

    Raises:
        ValueError: One does something that is a part of the pipeline, or of fl.fit, here.
        TypeError: One is written by the user, with hooks of a Trainer.
    """
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    kept, finetuning = list[Any](), None
    for callback in listed:
        kind = type(callback).__name__
        if not any([each.__name__ == "Callback" for each in type(callback).__mro__]) or hasattr(
            callback, "kind"
        ):
            kept.append(callback)
        elif kind == "EarlyStopping":
            kept.append(every(1, _early_stopping(callback), unit="epoch"))
        elif kind == "BackboneFinetuning":
            finetuning = Finetuning.of(callback, module)
        elif kind in _INSTEAD:
            raise ValueError(
                f"The callback {kind} of Lightning is {_INSTEAD[kind]} here. Leave it out, and use "
                "that."
            )
        elif kind not in _NEEDLESS:
            raise TypeError(
                f"The callback {kind} has hooks of a Trainer, and there is none here. Write it as "
                "a callback, (state, metrics) -> (state, metrics), or, if it only tells somebody, "
                "as fl.effect(f): see the how-to page Write a callback or an effect."
            )
    return TranslatedCallbacks(kept, finetuning)


def _early_stopping(given: Any) -> early_stopping:
    return early_stopping(
        monitored(given.monitor),
        patience=given.patience,
        min_delta=abs(float(given.min_delta)),
        mode=given.mode,
        check_finite=given.check_finite,
        stopping_threshold=given.stopping_threshold,
        divergence_threshold=given.divergence_threshold,
    )


def monitored(name: str) -> str:
    """The metric that Lightning calls so: there are no two names for its step and its epoch."""
    return name.removesuffix("_epoch").removesuffix("_step")
