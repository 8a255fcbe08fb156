"""Checkpoints that Lightning wrote."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch

import fnloop as fl
from fnloop.errors import CheckpointError
from tests.lightning.modules.plain import Plain


@pytest.mark.lightning("K6", "H11")
def test_weights_and_hyperparameters_are_read(tmp_path):
    module = Plain(lr=0.03, hidden=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = fl.lightning.read(tmp_path / "last.ckpt")
    assert (saved.hyperparameters, saved.step) == ({"lr": 0.03, "hidden": 8}, 3)
    again = Plain(**saved.hyperparameters)
    again.load_state_dict(saved.weights)
    state = fl.lightning.step(again).init()
    for name, value in module.state_dict().items():
        assert torch.equal(state.params[name], value)


def test_what_holds_more_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"model": Plain}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"holds more than tensors and plain values"):
        fl.lightning.read(tmp_path / "a.ckpt")
    torch.save({"weights": {}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of Lightning: it has no 'state"):
        fl.lightning.read(tmp_path / "b.ckpt")
