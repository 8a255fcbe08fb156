"""``on_train_epoch_end``."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl
from tests.lightning.modules.plain import Plain


def test_it_sees_the_epoch_and_its_metrics():
    seen = []

    class Tells(Plain):
        def on_train_epoch_end(self):
            seen.append((self.current_epoch, float(self.trainer.callback_metrics["train_loss"])))
            self.log("twice", 2 * self.trainer.callback_metrics["train_loss"])

    run = fl.lightning.step(Tells(), epochs=2)
    _, history = fl.fit(run.step, run.init(), run.data, epochs=2, callbacks=run.callbacks)
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert [loss for _, loss in seen] == pytest.approx(history["train_loss"])
    assert history["twice"] == pytest.approx([2 * loss for _, loss in seen])


@pytest.mark.filterwarnings("ignore:The model Lists changed")
def test_lists_that_do_not_last_are_explained():
    class Lists(Plain):
        def __init__(self):
            super().__init__()
            self.outputs = []

        def training_step(self, batch, batch_idx):
            self.outputs.append(super().training_step(batch, batch_idx))
            return self.outputs[-1]

        def on_train_epoch_end(self):
            torch.stack(self.outputs)

    run = fl.lightning.step(Lists())
    with pytest.raises(RuntimeError) as caught:
        fl.fit(run.step, run.init(), run.data, epochs=1, callbacks=run.callbacks)
    assert any(["do not last from batch to batch" in note for note in caught.value.__notes__])
