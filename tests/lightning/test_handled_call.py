"""``on_train_epoch_start``: what it sets lasts for its epoch, as in Lightning's own training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from tests.lightning.modules.halves import Halves
from tests.lightning.modules.parts import network
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import EPOCHS, trained


class Freezes(Plain):
    def on_train_epoch_start(self):
        self.net[0].requires_grad_(self.current_epoch < 1)


class FreezesByHand(Halves):
    """Steps a scheduler there too, once an epoch."""

    def on_train_epoch_start(self):
        self.encoder.requires_grad_(self.current_epoch != 1)
        self.lr_schedulers().step()


class ThawsAtTheEnd(Halves):
    """Puts back at the end of an epoch what was set at its start."""

    def on_train_epoch_start(self):
        self.encoder.requires_grad_(self.current_epoch != 1)

    def on_train_epoch_end(self):
        self.encoder.requires_grad_(True)


class Fixes(Plain):
    """Keeps the numbers of its normalization."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(64), *network())

    def on_train_epoch_start(self):
        self.net[0].train(self.current_epoch < 1)


class Slopes(Plain):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(), nn.Linear(16, 10))

    def on_train_epoch_start(self):
        self.net[1].negative_slope = 0.5**self.current_epoch


class Weighs(Plain):
    """Weighs its loss, changes the batch, and shrinks a weight once an epoch."""

    def __init__(self):
        super().__init__()
        self._factor = {}

    def on_train_epoch_start(self):
        self._factor["loss"] = 0.5**self.current_epoch
        with torch.no_grad():
            self.net[0].weight.mul_(0.9)
        self.log("factor", self._factor["loss"])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] * self._factor.get("loss", 1.0), batch[1])


def begun(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind()


def run_of(kind):
    return fl.lightning.step(begun(kind))


def check(state, kind):
    for name, value in trained(begun(kind), limit_val_batches=0).weights.items():
        have = {**state.params, **state.buffers}[name]
        torch.testing.assert_close(have, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Freezes, FreezesByHand, ThawsAtTheEnd, Fixes, Slopes, Weighs])
def test_what_it_sets_lasts_for_the_epoch_also_after_a_resume_in_it(kind, tmp_path):
    run = run_of(kind)
    whole, history = fl.fit(run.step, run.init(), run.data, epochs=EPOCHS)
    check(whole, kind)
    if kind is Weighs:
        assert history["factor"] == [1.0, 0.5, 0.25]
    first, _ = fl.fit(run.step, run.init(), run.data, steps=6)
    again = run_of(kind)
    state = fl.load(fl.save(first, tmp_path), like=again.init())
    state, _ = fl.fit(again.step, state, again.data, steps=4 * EPOCHS - 6)
    assert fl.tree_equal(state, whole)


def test_what_it_draws_lasts_too():
    drawn = []

    class Draws(Plain):
        def on_train_epoch_start(self):
            self.net[0].scale = float(torch.rand(()))

        def training_step(self, batch, batch_idx):
            drawn.append(self.net[0].scale)
            return super().training_step(batch, batch_idx)

    run = run_of(Draws)
    fl.fit(run.step, run.init(), run.data, epochs=2)
    first, second = drawn[-8:-4], drawn[-4:]
    assert len({*first}) == len({*second}) == 1
    assert first != second


def test_where_it_sets_nothing_it_is_called_once_an_epoch():
    calls = []

    class Tells(Plain):
        def on_train_epoch_start(self):
            calls.append(self.current_epoch)

    run = run_of(Tells)
    state, _ = fl.fit(run.step, run.init(), run.data, steps=1)
    calls.clear()
    fl.fit(run.step, state, run.data, epochs=3)
    assert calls == [1, 2]


class FreezesOnce(Plain):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[0].requires_grad_(False)


def test_what_is_to_last_for_longer_is_refused():
    run = run_of(FreezesOnce)
    fl.fit(run.step, run.init(), run.data, epochs=2)
    with pytest.raises(
        RuntimeError,
        match=r"FreezesOnce\.on_train_epoch_start has set net\.0\.weight\.requires_grad, .* in "
        r"epoch 1, and not so in epoch 2\. .* each time, as a function of the epoch",
    ):
        fl.fit(run.step, run.init(), run.data, epochs=3)


def test_what_a_later_hook_sets_is_told():
    class Thaws(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            self.net[0].requires_grad_(batch_idx != 1)

    run = run_of(Thaws)
    with pytest.warns(UserWarning, match=r"Thaws changed something .*: net\.0\..*grad"):
        fl.fit(run.step, run.init(), run.data, epochs=1)


def test_the_laws_hold():
    run = run_of(Freezes)
    state, batch = run.init(), next(iter(run.data.train))
    later = run.step(state, batch)[0].replace(cursor=torch.tensor([0, 32, 1]))
    for each in (state, later):
        fl.testing.check_pure(run.step, each, batch)
        fl.testing.check_repeatable(run.step, each, batch)
        fl.testing.check_stable(run.step, each, batch)
        fl.testing.check_skips(run.step, each, (batch[0] * torch.nan, batch[1]))
