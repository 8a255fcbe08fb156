"""Modules on many ranks: run by ``test_ranks.py``."""

from __future__ import annotations

import torch

import fnloop as fl
from tests.distributed.scenario import main, scenario
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


if __name__ == "__main__":
    main()
