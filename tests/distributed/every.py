"""Law 5 for everything that is exported: run by ``test_every.py``."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

import fnloop as fl
from tests.distributed import exported
from tests.distributed.laws import PLANS, assert_close, assert_same_everywhere, trained
from tests.distributed.scenario import main, scenario
from tests.laws import test_laws as alone


@contextlib.contextmanager
def about(name):
    """Name what has failed."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{name}: {error}") from error


def check_law_5(mesh, name, step, steps=6, dtype=torch.float32):
    """The step under each plan is the same in one process with as many more micro-batches.

    The second step is skipped, for a bad example that one rank has; in the fourth one rank alone
    has an example.
    """

    def model():
        return exported.Net().to(dtype)

    with about(name):
        one = trained(exported.in_parts(step, mesh.data), model, exported.data(dtype), steps)
        skipped = [each["skipped"] for each in one[1]]
        assert skipped[1] == 1 and sum(skipped) <= steps - 2, skipped
    for plan in PLANS:
        with about(f"{name}, {plan}"):
            many = trained(fl.shard(step, mesh, plan), model, exported.data(dtype), steps)
            assert_close(one, many)
            assert_same_everywhere(mesh, many[0])


@scenario
def every_stage(mesh):
    for name, step in exported.stages().items():
        check_law_5(mesh, name, step)


@scenario
def every_optimizer(mesh):
    for name, optimizer in exported.optimizers().items():
        if optimizer.evaluates:
            continue  # it goes into no chain: evaluating.py has it
        clipped = fl.optim.chain(fl.optim.clip_by_norm(0.5, name="first"), optimizer)
        guards = [fl.ema(0.9), fl.guard(fl.rules.spike("loss", warmup=2), name="bad")]
        step = exported.step_of(clipped, fl.accumulate(2), after=guards)
        # float64: some divide by gradients that are almost zero, which enlarges rounding
        check_law_5(mesh, name, step, steps=4, dtype=torch.float64)


@scenario
def every_schedule(mesh):
    factors = [fl.optim.scale_by(each, name=name) for name, each in exported.schedules().items()]
    check_law_5(mesh, "", exported.step_of(fl.optim.chain(*factors, fl.optim.sgd(1.0))))


@scenario
def every_callback(mesh):
    def run(step, make):
        state = step.init(lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 3)))
        state, history = fl.fit(
            step, state, alone.data(), epochs=2, callbacks=[make(), fl.History(every=1)]
        )
        return fl.gather(state), history.rows

    for name, make in alone.CALLBACKS.items():
        one = run(alone.step_of(grad=[fl.accumulate(mesh.data)], after=[fl.ema(0.9)]), make)
        for plan in PLANS:
            with about(f"{name}, {plan}"):
                many = run(fl.shard(alone.step_of(after=[fl.ema(0.9)]), mesh, plan), make)
                assert_close(one, many)
                assert_same_everywhere(mesh, many[0])


@scenario
def a_part_that_one_rank_alone_reaches(mesh):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x):
            return self.left(x) if bool(x[0, 0] > 0) else self.right(x)

    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 8, generator=g), torch.randn(24, 5, generator=g)
    batches = [(x[i : i + 6], y[i : i + 6]) for i in range(0, 24, 6)]
    step = exported.step_of(fl.optim.adamw(1e-2))
    one = trained(exported.in_parts(step, mesh.data), Branches, batches, steps=8)
    for plan in ("replicate", "zero2"):
        assert_close(one, trained(fl.shard(step, mesh, plan), Branches, batches, steps=8))


if __name__ == "__main__":
    main()
