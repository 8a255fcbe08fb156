"""The order in which callbacks and effects are called."""

from __future__ import annotations

import csv
import shutil
import time

import pytest
import torch

import fnloop as fl


def loss(model, batch):
    return model(batch).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def fit(folder, first, *more, **options):
    data = fl.Batches(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), 2, seed=0)
    effects = {
        "checkpoint": fl.checkpoint(folder / "saved", every=4, unit="step"),
        "track": fl.track(fl.trackers.CSV(folder / "rows.csv"), every=3),
    }
    order = [effects.pop(first), *effects.values(), *more]
    torch.manual_seed(0)
    state = STEP.init(torch.nn.Linear(2, 1))
    fl.fit(STEP, state, data, epochs=1, callbacks=order, progress=False, **options)


def rows(folder):
    with (folder / "rows.csv").open() as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("first", ["checkpoint", "track"])
def test_a_checkpoint_has_what_trackers_remember_of_its_step(tmp_path, first):
    run, killed = tmp_path / "run", tmp_path / "killed"

    def copy(state, metrics):  # what is there if the process is killed after step 11
        if int(state.step) == 11:
            time.sleep(0.5)  # trackers write in a thread
            shutil.copytree(run, killed, ignore=shutil.ignore_patterns(".lock"))

    fit(run, first, fl.effect(copy))
    whole = rows(run)
    shutil.rmtree(run)
    killed.rename(run)
    fit(run, first, resume=run / "saved")
    assert rows(run) == whole
    assert len(whole) == 11
