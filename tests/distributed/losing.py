"""A training in which rank 1 fails, hangs or is killed: run by ``test_losing.py``."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

import fnloop as fl


def main(how):
    torch.set_num_threads(1)
    shares = how == "is killed while it shares a model"
    mesh, calls = fl.mesh(tensor=2, timeout=30) if shares else fl.mesh(timeout=6), []
    rank = torch.distributed.get_rank()
    if how == "ends" and rank == 1:
        sys.exit(0)
    if how == "fails" and rank == 1:
        raise FileNotFoundError("no such data")

    def loss(model, batch):
        calls.append(batch)
        if rank == 1 and len(calls) == 4:
            if "is killed" in how:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return model(batch).square().mean()

    plan = {"weight": 0, "bias": 0} if shares else "replicate"
    step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh, plan)
    state = step.init(lambda: torch.nn.Linear(3, 2))
    fl.fit(step, state, fl.Batches(torch.ones(16, 3), 4), steps=9)


if __name__ == "__main__":
    main(sys.argv[1])
