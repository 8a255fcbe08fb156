"""A ``LightningDataModule`` as `fl.Data`."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

import fnloop as fl
from fnloop.data.sources import one_epoch
from tests.lightning.modules.parts import loader
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import EPOCHS, trained


class Digits(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)

    def train_dataloader(self):
        return loader(0, 64)

    def val_dataloader(self):
        return [loader(64, 96), loader(96, 128)]

    def predict_dataloader(self):
        return loader(128, 160)


@pytest.mark.lightning("H14")
def test_its_hooks_come_when_a_part_is_first_read():
    given = Digits()
    data = fl.lightning.data(given)
    assert given.calls == []
    assert len(data.train) == 2
    assert list(data.validate) == ["0", "1"]
    assert data.test is None
    assert given.calls == ["prepare", "fit", "predict"]


def test_a_module_trains_on_it():
    run = fl.lightning.step(Plain(), Digits(), epochs=1)
    state, history = fl.fit(run.step, run.init(), run.data, epochs=1, callbacks=run.callbacks)
    assert int(state.step) == 2
    assert "val_loss/dataloader_idx_1" in history
    assert len(list(run.predict(state))) == 1


class Prepared(Plain):
    """Its own loaders need its hooks, in Lightning's order."""

    def prepare_data(self):
        self.stop = 200

    def setup(self, stage):
        self.held_out = loader(120, self.stop)

    def val_dataloader(self):
        return self.held_out


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec:FutureWarning")
def test_beside_a_training_loader_the_modules_own_are_read():
    module = Prepared()
    theirs = trained(module, loader(0, 120))
    run = fl.lightning.step(module, loader(0, 120))
    state, history = fl.fit(run.step, run.init(), run.data, epochs=EPOCHS, callbacks=run.callbacks)
    expected = [row["val_loss"] for row in theirs.epochs]
    assert history["val_loss"] == pytest.approx(expected, abs=1e-6)
    assert "test_loss" in run.test(state)
    assert len(list(run.predict(state))) == 2


def test_data_that_is_spelled_out_stays_as_it_is():
    run = fl.lightning.step(Plain(), fl.Data(loader(0, 120)))
    assert run.data.validate is None
    assert run.callbacks == ()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size", "sequential"])
def test_several_loaders_are_read_as_lightning_reads_them(mode):
    a = DataLoader(torch.arange(4), batch_size=2)
    b = DataLoader(torch.arange(10, 20), batch_size=2)

    class Two(pl.LightningDataModule):
        def train_dataloader(self):
            return CombinedLoader({"a": a, "b": b}, mode=mode)

    train = fl.lightning.data(Two()).train
    expected = [batch for batch, _, _ in CombinedLoader({"a": a, "b": b}, mode=mode)]
    for _ in range(2):
        assert plain(one_epoch(train)) == plain(expected)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_loaders_that_are_combined_are_refused_where_they_are_not_read_so():
    loader = DataLoader(torch.arange(4), batch_size=2)
    combined = CombinedLoader({"a": loader, "b": loader})
    for given in (
        lambda: fl.Data(combined),
        lambda: fl.Data([1], validate=combined),
        lambda: list(one_epoch(combined)),
    ):
        with pytest.raises(TypeError, match=r"CombinedLoader of .* fl\.data\.together\(a="):
            given()


def plain(batches):
    def one(batch):
        if isinstance(batch, dict):
            return {name: one(each) for name, each in batch.items()}
        return None if batch is None else batch.tolist()

    return [one(batch) for batch in batches]


def test_each_epoch_begins_anew():
    both = fl.data.together(a=["a", "b"], b=[1, 2, 3], mode="restart")
    batches = both.iterate()
    found = [next(batches)[1]["a"] for _ in range(6)]
    assert found == ["a", "b", "a"] * 2


def test_a_hook_that_changes_batches_belongs_to_the_module():
    class Moves(Digits):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    with pytest.raises(ValueError, match=r"Moves defines on_after_batch_transfer\. What changes"):
        fl.lightning.data(Moves())


def test_what_is_no_data_module():
    with pytest.raises(TypeError, match=r"takes a LightningDataModule, got list\. Loaders go into"):
        fl.lightning.data([1])
    with pytest.raises(TypeError, match=r"has no train_dataloader"):
        fl.lightning.data(pl.LightningDataModule())
