"""Hooks that have no meaning are refused, each with what takes its place."""

from __future__ import annotations

import functools

import pytest
import torch

import fnloop as fl
from fnloop.lightning.overridden import _REFUSED, arguments_for
from tests.lightning.modules.plain import Plain


@pytest.mark.parametrize("hook", _REFUSED)
def test_a_hook_without_a_meaning_is_refused(hook):
    kind = type("Model", (Plain,), {hook: lambda self, *args, **keywords: None})
    with pytest.raises(ValueError, match=f"Model defines {hook}, which has no meaning here. "):
        fl.lightning.step(kind())


def test_what_is_no_lightning_module():
    with pytest.raises(TypeError, match=r"takes a LightningModule, got Linear\. For a plain"):
        fl.lightning.step(torch.nn.Linear(1, 1))


def test_a_module_that_cannot_be_trained():
    import pytorch_lightning as pl

    class Empty(pl.LightningModule):
        pass

    with pytest.raises(TypeError, match=r"Empty has no training_step, so it cannot be trained"):
        fl.lightning.step(Empty())


def test_a_step_that_draws_its_own_batches():
    class Draws(Plain):
        def training_step(self, dataloader_iter):
            pass

    with pytest.raises(ValueError, match=r"takes dataloader_iter and draws batches itself"):
        fl.lightning.step(Draws())


def test_a_wrong_argument_says_which_was_meant():
    with pytest.raises(TypeError, match=r"'max_epochs'\. Use epochs="):
        fl.lightning.step(Plain(), max_epochs=3)


def test_a_step_is_given_what_it_takes():
    class Model:
        def one(self, batch): ...
        def two(self, batch, batch_idx): ...
        def other(self, batch, number): ...
        def three(self, batch, batch_idx, dataloader_idx=0): ...
        def any(self, *args): ...
        @functools.wraps(three)
        def wrapped(self, *args): ...

    model = Model()
    expected = {"one": 1, "two": 2, "other": 2, "three": 3, "any": 3, "wrapped": 3}
    for name, count in expected.items():
        method = getattr(model, name)
        assert arguments_for(method, "batch", 5, 1) == ["batch", 5, 1][:count], name
        assert arguments_for(method, "batch", 5) == ["batch", 5][:count], name


def test_setup_is_called_once():
    class Late(Plain):
        def setup(self, stage):
            assert not hasattr(self, "late")
            self.late = torch.nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            return self.late(batch[0]).square().mean()

    for data in (None, Plain().train_dataloader()):
        run = fl.lightning.step(Late(), data)
        assert "late.weight" in run.init().params
