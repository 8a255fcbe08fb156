"""Sharded steps in one graph, recorded and not built: run by ``test_compiled.py``."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile

import pytest

import fnloop as fl
from fnloop.distributed.gates import RankError
from tests.distributed import exported
from tests.distributed.every import about
from tests.distributed.laws import (
    PLANS,
    Net,
    assert_close,
    assert_same_everywhere,
    data,
    loss,
    pipeline,
    trained,
)
from tests.distributed.scenario import main, scenario


@scenario
def every_stage(mesh):
    found, batches = exported.stages(), list(exported.data())[:3]  # of one shape, for one graph
    for name, step, plan in zip(found, found.values(), itertools.cycle(PLANS), strict=False):
        one = trained(exported.in_parts(step, mesh.data), exported.Net, batches, 6)
        fast = fl.compile(fl.shard(step, mesh, plan), donate=True, backend="aot_eager")
        with about(f"{name}, {plan}"):
            many = trained(fast, exported.Net, batches, 6)
            assert_close(one, many, atol=1e-5)
            assert_same_everywhere(mesh, many[0])
            # One with the part of a sequence that is called every second time, and one without; and
            # one for each of the three phases of what is frozen.
            assert fast.graphs == {"sequence 0": 2, "grad 1": 3}.get(name, 1)


def fitted(mesh, many, batches=None, effects=(), **options):
    """A run in calls of `many` steps: the last state, and the history of each step."""
    step = fl.shard(pipeline(1, "fp16"), mesh, "zero2")
    step = fl.compile(step, steps=many, backend="aot_eager")
    callbacks = [fl.every(3, fl.validate(loss, data(23, 4))), fl.History(every=1), *effects]
    state, batches = step.init(Net, seed=3), data(40, 4) if batches is None else batches
    state, history = fl.fit(step, state, batches, callbacks=callbacks, **options)
    return fl.gather(state), history


@scenario
def several_steps_in_one_call_have_the_bits_of_a_call_for_each(mesh):
    one, rows = fitted(mesh, 1, steps=14)
    seen = []

    class Saves(fl.base.Effect):  # ends calls of the first rank that the others go on with
        def __call__(self, state, metrics):
            seen.append(int(state.cursor[2]))

        def needs_state(self, cursor, reported):
            return cursor.count % 5 == 0

    many, others = fitted(mesh, 4, effects=[Saves()], steps=14)
    assert one == many, fl.tree_diff(one, many)
    assert rows.rows == others.rows
    assert seen == (list(range(1, 15)) if mesh.rank == 0 else [])


@scenario
def a_signal_and_a_time_limit_end_a_call_on_all_ranks(mesh):
    def batches(epoch):
        for i, batch in enumerate(data(40, 4)):
            if i == 4 and mesh.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    state, history = fitted(mesh, 4, batches, steps=1000)
    assert history.reason == "interrupted by SIGTERM to rank 1"
    assert len(set(mesh.exchange(int(state.step)))) == 1
    state, history = fitted(mesh, 4, steps=10**9, seconds=1.0 if mesh.rank == 1 else 60.0)
    assert history.status == "stopped"
    assert len(set(mesh.exchange(int(state.step)))) == 1


@scenario
def a_failure_within_a_call_is_told_to_the_other_ranks(mesh):
    def fails(loss, batches, match, folder):
        step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
        step = fl.compile(fl.shard(step, mesh), steps=4, donate=True, backend="aot_eager")
        kind, match = (Exception, match) if mesh.rank else (RankError, f"Rank 1.*{match}")
        callbacks = [fl.checkpoint(folder, every=2, unit="step")]
        with pytest.raises(kind, match=match):
            fl.fit(step, step.init(Net, seed=3), batches, steps=20, callbacks=callbacks)
        assert mesh.exchange("here") == ["here"] * mesh.data

    def ends(epoch):
        yield from list(data(40, 4))[:6]
        if mesh.rank == 1:
            raise ValueError("no more")
        yield next(iter(data(40, 4)))

    def refuses(model, batch):
        assert (batch[0] < 10).all()
        return loss(model, batch)

    wild = list(data(40, 4))
    wild[5][0][-1] = 99.0  # of rank 1
    [folder, *_] = mesh.exchange(tempfile.mkdtemp())
    fails(loss, ends, "no more", f"{folder}/ends")
    fails(refuses, wild, "asserts does not hold", f"{folder}/refuses")


if __name__ == "__main__":
    main()
