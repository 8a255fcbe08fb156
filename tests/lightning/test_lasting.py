"""What hooks at the end of an epoch change, against Lightning's own training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from tests.lightning.modules.halves import Halves
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import EPOCHS, trained


class Weighed(Plain):
    """Its loss has a weight in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.ones(()))
        self.factor = 1.0

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.weight * self.factor


class Clamps(Plain):
    @torch.no_grad()
    def on_train_epoch_end(self):
        for p in self.parameters():
            p.clamp_(-0.05, 0.05)


class ClampsByHand(Halves):
    on_train_epoch_end = Clamps.on_train_epoch_end


class Weighs(Weighed):
    def on_train_epoch_end(self):
        self.weight.mul_(0.5)


class WeighsInValidation(Weighed):
    def on_validation_epoch_end(self):
        self.weight = self.weight * (0.5 if self.trainer.callback_metrics["val_loss"] < 2.3 else 2)


class Copies(Weighed):
    """Validates with other weights, and puts its own back."""

    def on_validation_start(self):
        self.own = [p.clone() for p in self.parameters()]
        for p in self.parameters():
            p.data.zero_()

    def on_validation_end(self):
        for p, own in zip(self.parameters(), self.own, strict=True):
            p.data.copy_(own)
        del self.own


def begun(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind()


def fitted(kind, epochs=EPOCHS):
    run = fl.lightning.step(begun(kind))
    return fl.fit(run.step, run.init(), run.data, epochs=epochs, callbacks=run.callbacks)


@pytest.mark.parametrize("kind", [Clamps, ClampsByHand, Weighs, WeighsInValidation, Copies])
def test_parameters_and_buffers_last(kind):
    state, history = fitted(kind)
    theirs = trained(begun(kind))
    for name, value in {**state.params, **state.buffers}.items():
        torch.testing.assert_close(value, theirs.weights[name], rtol=0, atol=1e-6)
    if "val_loss" in history.names:
        assert history["val_loss"] == pytest.approx([e["val_loss"] for e in theirs.epochs])


def test_what_validation_changes_in_a_population_is_each_members_own():
    given = begun(WeighsInValidation)
    run = fl.lightning.step(given)
    sweep = fl.sweep(run.step, {"adam.lr": torch.tensor([1e-4, 1e-1])})
    state = sweep.init(run.model)
    state, _ = fl.fit(sweep, state, run.data, epochs=2, callbacks=run.callbacks)
    for i, lr in enumerate((1e-4, 1e-1)):
        given.hparams.lr = lr
        own = fl.lightning.step(given)
        alone, _ = fl.fit(own.step, own.init(), own.data, epochs=2, callbacks=own.callbacks)
        assert torch.equal(fl.member(state, i).buffers["weight"], alone.buffers["weight"])
    assert state.buffers["weight"].unique().numel() == 2


class Counts(Weighed):
    def on_train_epoch_end(self):
        self.factor *= 0.5


class CountsInValidation(Weighed):
    def on_validation_epoch_end(self):
        self.factor *= 0.5


@pytest.mark.parametrize("kind", [Counts, CountsInValidation])
def test_attributes_that_do_not_last_are_told(kind):
    with pytest.warns(UserWarning, match=r"changed something outside .*: factor\..* buffer"):
        fitted(kind, epochs=1)


class Collects(Plain):
    """Begins anew in each validation."""

    def __init__(self):
        super().__init__()
        self.outputs, self.seen = [], None

    def on_validation_epoch_start(self):
        self.outputs, self.seen, self.batches = [], 0, 0

    def validation_step(self, batch, batch_idx):
        self.outputs.append(self(batch[0]).mean())
        self.seen += len(batch[0])

    def on_validation_epoch_end(self):
        self.log("mean", torch.stack(self.outputs).mean() * self.seen)


def test_what_begins_anew_in_each_validation_needs_no_word():
    _, history = fitted(Collects)
    theirs = trained(begun(Collects))
    assert history["mean"] == pytest.approx([e["mean"] for e in theirs.epochs], rel=1e-5)


class Freezes(Plain):
    def on_train_epoch_end(self):
        self.net[0].requires_grad_(False)


class FreezesByHand(Halves):
    def on_train_epoch_end(self):
        self.encoder.requires_grad_(False)


class Drops(Plain):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def on_validation_epoch_end(self):
        self.drop.p = 0.1


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Freezes, r"Freezes\.on_train_epoch_end changes net\.0\.weight\.requires_grad"),
        (FreezesByHand, r"FreezesByHand\.on_train_epoch_end changes encoder.*\.requires_grad"),
        (Drops, r"The validation of Drops changes drop\.p"),
    ],
)
def test_settings_that_would_be_lost_are_refused(kind, what):
    with pytest.raises(RuntimeError, match=what + r".*, and that would be lost.*epoch_start"):
        fitted(kind, epochs=1)


def test_a_parameter_keeps_its_shape():
    class Grows(Plain):
        def on_train_epoch_end(self):
            self.net[2] = nn.Linear(16, 11)

    with pytest.raises(RuntimeError, match=r"Grows\.on_train_epoch_end takes 'net\.2\..*' away"):
        fitted(Grows, epochs=1)
