"""Modules on many ranks: run by ``test_ranks.py``."""

from __future__ import annotations

import torch
import torchmetrics
from torch.nn import functional as F

import fnloop as fl
from tests.distributed.scenario import main, scenario
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import module


def trained(run, step):
    return fl.fit(step, step.init(run.model), run.data, epochs=2, callbacks=run.callbacks)


@scenario
def ranks_are_micro_batches(mesh):
    for name in ("by step", "collection", "objects"):
        run = fl.lightning.step(module(name), epochs=2, accumulate_grad_batches=1)
        whole, seen = trained(run, run.step)
        state, history = trained(run, fl.shard(run.step, mesh))
        for path, value in fl.gather(state).params.items():
            torch.testing.assert_close(value, whole.params[path], rtol=1e-4, atol=1e-5)
        for metric in ("train_loss", "val_acc", "train_acc"):
            if metric in seen:
                torch.testing.assert_close(history[metric], seen[metric], rtol=1e-4, atol=1e-5)


class Counting(Plain):
    """Counts examples in objects, which it computes itself or logs."""

    def __init__(self):
        super().__init__()
        self.trained, self.logged = torchmetrics.SumMetric(), torchmetrics.SumMetric()
        self.validated = torchmetrics.SumMetric()

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.trained.update(len(x))
        self.logged.update(len(x))
        self.log("logged", self.logged, on_step=False, on_epoch=True)
        return F.cross_entropy(self(x), y)

    def on_train_epoch_end(self):
        self.log("trained", self.trained.compute())

    def validation_step(self, batch, batch_idx):
        self.validated.update(len(batch[0]))

    def on_validation_epoch_end(self):
        self.log("validated", self.validated.compute())


@scenario
def objects_count_each_example_once(mesh):
    torch.manual_seed(0)
    run = fl.lightning.step(Counting(), epochs=2, accumulate_grad_batches=1)
    for step in (run.step, fl.shard(run.step, mesh)):
        _, history = trained(run, step)
        found = [history[name] for name in ("logged", "trained", "validated")]
        assert found == [[120, 120], [120, 120], [80, 80]], found


if __name__ == "__main__":
    main()
