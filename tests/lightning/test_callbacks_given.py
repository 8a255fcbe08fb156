"""Callbacks of Lightning."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as theirs

import fnloop as fl
from fnloop.lightning.callbacks_given import _INSTEAD, Finetuning, callbacks_of
from tests.lightning.modules.plain import Plain
from tests.lightning.modules.transfer import Finetuned


@pytest.mark.lightning("C5")
def test_early_stopping_has_its_settings():
    given = theirs.EarlyStopping("val_loss", min_delta=0.1, patience=2, mode="max")
    (own,) = callbacks_of([given], Plain()).callbacks
    assert own.inner == fl.early_stopping("val_loss", patience=2, min_delta=0.1, mode="max")
    (own,) = callbacks_of(theirs.EarlyStopping("train_loss_epoch"), Plain()).callbacks
    assert own.inner.monitor == "train_loss"


def test_a_run_is_stopped():
    stop = theirs.EarlyStopping("val_loss", stopping_threshold=10.0)
    run = fl.lightning.step(Plain(), callbacks=[stop, theirs.LearningRateMonitor()])
    state, history = fl.fit(run.step, run.init(), run.data, epochs=5, callbacks=run.callbacks)
    assert history.status == "stopped"
    assert int(state.cursor[0]) == 1


def test_one_callback_may_stand_for_a_list():
    class Configures(Plain):
        def configure_callbacks(self):
            return theirs.EarlyStopping("val_loss", stopping_threshold=10.0)

    class ConfiguresNone(Plain):
        def configure_callbacks(self):
            return None

    stop = theirs.EarlyStopping("val_loss", stopping_threshold=10.0)
    for given in ({"module": Configures()}, {"module": ConfiguresNone(), "callbacks": stop}):
        run = fl.lightning.step(**given)
        _, history = fl.fit(run.step, run.init(), run.data, epochs=5, callbacks=run.callbacks)
        assert history.status == "stopped"


@pytest.mark.parametrize("name", _INSTEAD)
def test_what_is_a_part_of_the_pipeline_says_so(name):
    kind = getattr(theirs, name)
    given = kind.__new__(kind)
    with pytest.raises(ValueError, match=f"callback {name} of Lightning is fl"):
        callbacks_of([given], Plain())


def test_one_of_the_users_own_says_how_to_write_it():
    class Mine(pl.Callback):
        pass

    with pytest.raises(TypeError, match=r"Mine has hooks of a Trainer, .* fl\.effect\(f\)"):
        callbacks_of([Mine()], Plain())


@pytest.mark.lightning("C13")
@pytest.mark.parametrize("first", [None, 0.5])
@pytest.mark.parametrize("aligned", [True, False])
def test_rates_of_a_backbone_are_those_of_the_callback(first, aligned):
    given = theirs.BackboneFinetuning(
        2, lambda epoch: epoch / 2, backbone_initial_lr=first, should_align=aligned
    )
    heads = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    found = Finetuning(given, 2).rates(heads)

    model = Finetuned()
    optimizer = torch.optim.SGD(model.net.parameters(), lr=1.0)
    for epoch, lr in enumerate(heads):
        optimizer.param_groups[0]["lr"] = lr
        given.finetune_function(model, epoch, optimizer)
        if epoch >= 2:
            assert found[epoch] == pytest.approx(optimizer.param_groups[-1]["lr"])


def test_a_backbone_that_cannot_be_frozen_as_there():
    given = theirs.BackboneFinetuning(1)
    with pytest.raises(ValueError, match=r"attribute backbone, and Plain has none"):
        fl.lightning.step(Plain(), epochs=2, callbacks=[given])

    class Norms(Plain):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.BatchNorm1d(3)

    with pytest.raises(ValueError, match=r"goes on training the BatchNorm layers"):
        fl.lightning.step(Norms(), epochs=2, callbacks=[given])
