"""What Ray's workers do: for ``test_ray.py``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import ray.train
import ray.tune

import fnloop as fl
from tests.distributed import training

EPOCHS = 2


def plain(*stages):
    """A step whose sums over ranks may be rounded in another order."""
    return fl.pipe(training.loss, fl.grad, *stages, fl.update(fl.optim.adamw(1e-2)))


def report(state, metrics):
    ray.train.report({"loss": float(metrics["loss"]), "count": int(state.cursor[2])})


class Noted(ray.train.UserCallback):
    """Notes in a file what Ray is told."""

    def __init__(self, file):
        self.file = file

    def after_report(self, run_context, metrics, checkpoint):
        with Path(self.file).open("a") as notes:
            notes.write(json.dumps(metrics) + "\n")


def train(config):
    """Some epochs; the state is then in the folder."""
    mesh, folder = fl.mesh(), Path(config["folder"])
    canonical = config["reduce"] == "canonical"
    step = training.pipeline() if canonical else plain()
    step = fl.shard(step, mesh, config["plan"], reduce=config["reduce"])
    reporting = fl.every(1, fl.effect(report, ranks="all"), unit="epoch")
    _, history = fl.fit(
        step,
        step.init(training.model, seed=3),
        training.data(),
        epochs=EPOCHS,
        callbacks=[fl.checkpoint(folder, every=1), reporting],
        resume=folder,
    )
    return mesh.data, history["loss"]


def survive(config):
    """The training of ``test_surviving``, which says where its processes are."""
    folder, rank = Path(config["folder"]), fl.mesh().rank
    (folder / f"process-{rank}").write_text(str(os.getpid()))
    training.main(folder, config["steps"], config["seconds"])


def fail(config):
    """One rank finds an error in its part of the data."""
    mesh = fl.mesh()

    def loss(model, batch):
        if mesh.rank == 1:
            raise ArithmeticError("the loss of one rank")
        return training.loss(model, batch)

    step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh)
    fl.fit(step, step.init(training.model), training.data(), steps=2)


def attempt(lr, folder, *effects):
    """A run of a sweep."""
    step = fl.pipe(training.loss, fl.grad, fl.update(fl.optim.sgd(lr)))
    return fl.fit(
        step,
        step.init(training.model, seed=3),
        training.data(),
        epochs=EPOCHS,
        callbacks=[*effects, fl.checkpoint(folder, every=1)],
        resume=folder,
    )


def trial(config):
    """A run of a sweep in one of Ray's processes; if it is the first in its folder, it is lost."""
    folder = Path(config["folder"], str(config["lr"]))
    lost = config["lost"] == config["lr"] and not folder.exists()

    def tell(state, metrics):
        if lost and int(state.cursor[0]) == 1:  # after the first epoch, which is saved
            os.kill(os.getpid(), signal.SIGKILL)
        ray.tune.report({"loss": float(metrics["loss"]), "count": int(state.cursor[2])})

    attempt(config["lr"], folder, fl.every(1, fl.effect(tell), unit="epoch"))
