"""What happens to one rank ends or moves all alike: run by ``test_agreeing.py``."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.distributed.gates import RankError
from tests.distributed.scenario import main, scenario


def loss(model, batch):
    return model(batch).square().mean()


def data():
    return fl.Batches(torch.ones(16, 3), 4)


def sharded(mesh):
    return fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh)


def fit(mesh, *callbacks, step=None, batches=None, steps=1000, **options):
    step = step or sharded(mesh)
    state = step.init(lambda: nn.Linear(3, 2))
    batches = data() if batches is None else batches
    return fl.fit(step, state, batches, steps=steps, callbacks=list(callbacks), **options)


def same(mesh, value):
    """All ranks have this value."""
    [first, *others] = mesh.exchange(value)
    assert all(other == first for other in others), [first, *others]
    return first


def at(count, call):
    """An effect that calls `call` after a step."""

    def effect(state, metrics):
        if int(state.cursor[2]) == count:
            call()

    return fl.effect(effect, ranks="all")


def send(mesh, rank, which):
    """Send a signal to one rank."""
    return lambda: os.kill(os.getpid(), which) if mesh.rank == rank else None


@scenario
def sigterm_to_one_rank_ends_all_after_the_same_step(mesh):
    state, history = fit(mesh, at(7, send(mesh, 1, signal.SIGTERM)))
    found = same(mesh, (int(state.step), history.status, history.reason))
    assert found == (7, "interrupted", "interrupted by SIGTERM to rank 1")


@scenario
def a_signal_while_a_rank_waits_for_another_ends_both(mesh):
    def call():
        if mesh.rank == 1:
            time.sleep(1)
        else:  # while it waits at the gate of the next step
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    state, history = fit(mesh, at(7, call))
    found = same(mesh, (int(state.step), history.status, history.reason))
    assert found == (8, "interrupted", "interrupted by SIGTERM to rank 0")


@scenario
def ctrl_c_to_the_group_ends_all(mesh):
    state, history = fit(
        mesh,
        fl.every(100, fl.validate(loss, data())),
        at(7, lambda: os.kill(os.getpid(), signal.SIGINT)),
    )
    found = same(mesh, (int(state.step), history.status, history.reason))
    assert found == (7, "interrupted", "interrupted by Ctrl-C")
    same(mesh, history[-1]["val/loss"])  # validated together


@scenario
def a_time_limit_with_clocks_apart(mesh):
    state, history = fit(mesh, steps=10**9, seconds=1.0 if mesh.rank == 1 else 60.0)
    _, status = same(mesh, (int(state.step), history.status))
    assert status == "stopped"


@scenario
def a_demand_to_save_on_one_rank_is_one_on_all(mesh):
    class Saves(fl.Effect):
        ranks = "all"
        saved = ()

        def __call__(self, state, metrics):
            if self.asked:
                self.asked, self.saved = False, (*self.saved, int(state.cursor[2]))

    saves = Saves()

    def ask(*_):
        saves.asked = True

    before = signal.signal(signal.SIGUSR1, ask)
    fit(mesh, saves, at(5, send(mesh, 1, signal.SIGUSR1)), steps=9)
    signal.signal(signal.SIGUSR1, before)
    assert same(mesh, saves.saved) == (6,)


def fails(mesh, rank, message="no more"):
    """Something that fails on one rank."""

    def call():
        if mesh.rank == rank:
            raise ValueError(message)

    return call


def ended(mesh, rank, run, match="no more"):
    """One rank raises its own error; the others name it, and its message, within seconds."""
    began = time.monotonic()
    if mesh.rank == rank:
        with pytest.raises(ValueError, match=match):
            run()
    else:
        with pytest.raises(RankError, match=f"Rank {rank} of .* has failed.*{match}") as caught:
            run()
        assert caught.value.ranks == (rank,)
    assert time.monotonic() - began < 20
    assert mesh.exchange("here") == ["here"] * mesh.data


@scenario
def a_callback_fails_on_one_rank(mesh):
    def callback(state, metrics):
        if int(state.cursor[2]) == 3:
            fails(mesh, 1)()
        return state, metrics

    ended(mesh, 1, lambda: fit(mesh, callback))


@scenario
def an_effect_fails_on_one_rank(mesh):
    ended(mesh, 0, lambda: fit(mesh, at(3, fails(mesh, 0))))


@scenario
def an_effect_cannot_be_opened_on_one_rank(mesh):
    class Cannot(fl.Effect):
        ranks = "all"

        def open(self, run):
            fails(mesh, 1)()

    ended(mesh, 1, lambda: fit(mesh, Cannot()))

    class Refuses(fl.Effect):
        def check_run(self, run):
            fails(mesh, 0)()

    ended(mesh, 0, lambda: fit(mesh, Refuses()))


@scenario
def the_data_fails_on_one_rank(mesh):
    def epoch(number):
        yield torch.ones(4, 3)
        fails(mesh, 1)()
        yield torch.ones(4, 3)

    ended(mesh, 1, lambda: fit(mesh, batches=epoch))


@scenario
def the_loss_fails_on_one_rank(mesh):
    def bad(model, batch):
        fails(mesh, 1)()
        return loss(model, batch)

    step = fl.shard(fl.pipe(bad, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh)
    ended(mesh, 1, lambda: fit(mesh, step=step))


@scenario
def a_validation_fails_on_one_rank(mesh):
    calls = []

    def bad(model, batch):
        calls.append(batch)
        if len(calls) > 2:
            fails(mesh, 1)()
        return loss(model, batch)

    ended(mesh, 1, lambda: fit(mesh, fl.every(3, fl.validate(bad, data()))))


@scenario
def early_stopping_agrees(mesh):
    stop = fl.early_stopping("val/loss", patience=2, min_delta=1.0)
    state, history = fit(mesh, fl.every(3, fl.validate(loss, data())), stop)
    step, status = same(mesh, (int(state.step), history.status))
    assert status == "stopped"
    assert step < 100


@scenario
def one_rank_speaks_for_all(mesh):
    seen, ran = [], []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    handler = Handler()
    logging.getLogger("fnloop").addHandler(handler)
    fit(mesh, at(2, send(mesh, mesh.rank, signal.SIGTERM)))
    logging.getLogger("fnloop").removeHandler(handler)
    assert bool(seen) == (mesh.rank == 0)

    fit(mesh, fl.effect(lambda s, m: ran.append(1)), steps=2)  # such as progress and trackers
    assert len(ran) == (2 if mesh.rank == 0 else 0)

    with pytest.raises(UserWarning, match="odd"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("odd", stacklevel=1)


if __name__ == "__main__":
    main()
