"""What a module finds in place of a Trainer."""

from __future__ import annotations

import pytest

import fnloop as fl
from tests.lightning.modules.halves import Halves
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import EPOCHS, trained


def test_positions_are_those_of_lightning():
    seen = []

    class Tells(Plain):
        def training_step(self, batch, batch_idx):
            trainer = self.trainer
            last = trainer.is_last_batch
            seen.append((self.current_epoch, batch_idx, self.global_step, last))
            return super().training_step(batch, batch_idx)

    run = fl.lightning.step(Tells(), epochs=2)
    fl.fit(run.step, run.init(), run.data, epochs=2)
    expected = [(e, i, 4 * e + i, i == 3) for e in range(2) for i in range(4)]
    assert seen == expected


def test_validation_is_in_the_epoch_that_it_ends():
    seen = []

    class Tells(Plain):
        def on_validation_epoch_end(self):
            seen.append((self.current_epoch, self.global_step, self.trainer.validating))

    run = fl.lightning.step(Tells(), epochs=2)
    fl.fit(run.step, run.init(), run.data, epochs=2, callbacks=run.callbacks)
    fl.fit(run.step, run.init(), run.data, smoke=True, callbacks=run.callbacks)
    whole = [(0, 4, True), (1, 8, True)]
    assert [row for row in seen if row[1] in (4, 8)] == whole
    assert seen[-1] == (0, 2, True)  # the smoke run's


def test_steps_by_hand_are_counted_as_lightning_does():
    seen, ends = [], []

    class Tells(Halves):
        def training_step(self, batch, batch_idx):
            before = self.global_step
            super().training_step(batch, batch_idx)
            seen.append((before, self.global_step))

        def on_train_epoch_end(self):
            ends.append(self.global_step)

        def validation_step(self, batch, batch_idx):
            ends.append(self.global_step)

        val_dataloader = Plain.val_dataloader

    trained(Tells())
    theirs = seen.copy(), sorted(ends)
    run = fl.lightning.step(Tells())
    seen.clear(), ends.clear()
    fl.fit(run.step, run.init(), run.data, epochs=EPOCHS, callbacks=run.callbacks)
    del ends[0]  # of the look at its metrics before the first epoch
    assert (seen, sorted(ends)) == theirs
    assert seen[1] == (1, 3)


def test_steps_after_the_update_are_counted_in_hooks():
    seen = []

    class Tells(Plain):
        def on_before_optimizer_step(self, optimizer):
            seen.append(self.global_step)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append(self.global_step)

        def on_train_epoch_end(self):
            seen.append(self.global_step)

    trained(Tells())
    theirs = seen.copy()
    run = fl.lightning.step(Tells())
    seen.clear()
    fl.fit(run.step, run.init(), run.data, epochs=EPOCHS, callbacks=run.callbacks)
    assert seen == theirs


def test_what_is_not_there_says_what_is():
    class Asks(Plain):
        def training_step(self, batch, batch_idx):
            return self.trainer.strategy

    run = fl.lightning.step(Asks())
    with pytest.raises(RuntimeError, match=r"Asks asks for self\.trainer\.strategy, and there is"):
        fl.fit(run.step, run.init(), run.data, epochs=1)


def test_the_length_of_a_run_is_asked_for():
    class Asks(Plain):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 8

    with pytest.raises(RuntimeError, match=r"estimated_stepping_batches, which follows from"):
        fl.lightning.step(Asks())
    with pytest.raises(TypeError, match=r"configure_optimizers returned None"):
        fl.lightning.step(Asks(), epochs=2)


def test_a_number_that_a_graph_would_keep_is_refused():
    class Asks(Plain):
        def training_step(self, batch, batch_idx):
            weight = 2.0 if self.current_epoch > 3 else 1.0
            return weight * super().training_step(batch, batch_idx)

    run = fl.lightning.step(Asks())
    batch = next(iter(run.data.train))
    run.step(run.init(), batch)
    with pytest.raises(RuntimeError, match=r"reads self\.current_epoch in a step that is compiled"):
        fl.compile(run.step, backend="aot_eager")(run.init(), batch)


@pytest.mark.parametrize("method", ["optimizers", "lr_schedulers"])
def test_an_automatic_step_that_asks_for_its_optimizers_is_told_of_that(method):
    class Asks(Plain):
        def training_step(self, batch, batch_idx):
            getattr(self, method)()
            return super().training_step(batch, batch_idx)

    run = fl.lightning.step(Asks())
    with pytest.raises(RuntimeError, match=rf"Asks calls self\.{method}\(\) .* leave the call out"):
        fl.fit(run.step, run.init(), run.data, steps=1)
