"""What happens to one rank ends or moves all alike: run by ``test_agreeing.py``."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.distributed.gates import RankError
from fnloop.effects.effect import Effect
from tests.distributed.scenario import main, scenario


def loss(model, batch):
    return model(batch).square().mean()


def data():
    return fl.Batches(torch.ones(16, 3), 4)


def data_of(batches):
    return fl.Batches(torch.ones(4 * batches, 3), 4)


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


@pytest.mark.lightning("G1")
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


def asking(mesh, rank, count):
    """A callback that asks for a stop on one rank, as by a clock that is ahead."""

    def clock(state, metrics):
        asks = mesh.rank == rank and int(state.cursor[2]) >= count
        return state, {**metrics, "clock": fl.stop(asks, f"time is up on rank {rank}")}

    return clock


@scenario
def a_stop_that_one_rank_asks_for_ends_all(mesh):
    for plan in ("replicate", "zero2"):
        [folder, *_] = mesh.exchange(tempfile.mkdtemp())
        step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1))), mesh, plan)
        callbacks = [asking(mesh, 1, 7), fl.checkpoint(folder, every=100, unit="step")]
        state, history = fit(mesh, *callbacks, step=step)
        found = same(mesh, (int(state.step), history.status, history.reason))
        assert found == (7, "stopped", "time is up on rank 1")
        assert fl.load(folder, like=state) == state


@scenario
def a_stop_that_several_ask_for_takes_no_more_of_the_data(mesh):
    read = iter([torch.ones(4, 3)] * 9)
    state, history = fit(mesh, asking(mesh, mesh.rank, 3), batches=read)
    assert same(mesh, (int(state.step), history.status)) == (3, "stopped")
    assert len(list(read)) == 6


class Reader(Effect):
    """Reads the state after one step, on the first rank: a call of several steps ends there."""

    name = "reader"

    def __init__(self, count):
        self.count = count

    def __call__(self, state, metrics):
        pass

    def needs_state(self, cursor, reported):
        return cursor.count == self.count


@scenario
def calls_of_several_steps_that_end_at_different_ones(mesh):
    for count in (3, 6, 7):
        step = fl.compile(sharded(mesh), steps=4)
        state, history = fit(mesh, Reader(count), step=step, batches=data_of(9), steps=6)
        found = same(mesh, (int(state.step), history.status))
        assert found == (6, "completed")


@scenario
def a_time_limit_with_clocks_apart(mesh):
    state, history = fit(mesh, steps=10**9, seconds=1.0 if mesh.rank == 1 else 60.0)
    _, status = same(mesh, (int(state.step), history.status))
    assert status == "stopped"


@scenario
def seconds_are_over_on_all_ranks_at_once(mesh):
    """Each rank's clock goes at its own time; what is due on one is due on all."""
    seen = []

    def note(state, metrics):
        seen.append(int(state.cursor[2]))
        return state, metrics

    fit(
        mesh,
        fl.every(0.05 if mesh.rank == 1 else 1000.0, note, unit="second", name="a"),
        fl.every(0.15 if mesh.rank == 0 else 1000.0, fl.validate(loss, data()), unit="second"),
        seconds=1.0,
    )
    assert len(same(mesh, seen)) > 2


@scenario
def a_checkpoint_by_the_clock_is_one_of_all(mesh):
    folder = mesh.exchange(tempfile.mkdtemp())[0]
    saving = fl.checkpoint(folder, keep=None, every=0.1, unit="second", last=False)
    fit(mesh, saving, seconds=1.0, steps=10**9)
    assert len([path for path in Path(folder).iterdir() if path.name.startswith("step-")]) > 1


@scenario
def a_stop_that_came_too_early_is_held_back_on_all(mesh):
    def stop(state, metrics):
        return state, {**metrics, "stop": fl.stop(int(state.cursor[2]) in (3, 9), "told")}

    state, history = fit(mesh, stop, min_epochs=2)
    found = same(mesh, (int(state.step), history.status, history.reason))
    assert found == (9, "stopped", "told")


@scenario
def a_limit_is_of_batches_of_all_ranks(mesh):
    few = fl.data.limit(data(), 3)
    callbacks = [fl.every(0.5, fl.validate(loss, {"a": few, "b": data()}), unit="epoch")]
    state, history = fit(mesh, *callbacks, batches=few, steps=7)
    assert same(mesh, state.cursor.tolist()) == [2, 4, 7]
    assert same(mesh, history.steps("val/a/loss")) == [2, 3, 5, 6]


@scenario
def data_is_prepared_once_a_machine_and_opened_by_each(mesh):
    folder, calls = Path(mesh.exchange(tempfile.mkdtemp())[0]), []

    def prepare():
        calls.append("prepare")
        time.sleep(0.3)
        (folder / "data").touch()

    def setup():
        calls.append("setup")
        assert (folder / "data").exists()
        return fl.Data(data(), validate=data())

    whole = fl.Data(prepare=prepare, setup=setup)
    state, _ = fit(mesh, fl.every(2, fl.validate(loss, whole)), batches=whole, steps=4)
    assert mesh.exchange(calls) == [["prepare", "setup"], ["setup"]]
    assert same(mesh, int(state.step)) == 4


@scenario
def a_preparation_that_fails_fails_on_all(mesh):
    def prepare():
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        fit(mesh, batches=fl.Data([1], prepare=prepare))


@scenario
def a_smoke_run_of_many_ranks_leaves_nothing(mesh):
    folder = Path(mesh.exchange(tempfile.mkdtemp())[0])
    callbacks = [fl.every(99, fl.validate(loss, data())), fl.checkpoint(folder / "run")]
    plain = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(0.1)))
    for step in (fl.shard(plain, mesh), fl.shard(plain, mesh, "zero2")):
        state, history = fit(mesh, *callbacks, step=step, smoke=True)
        assert same(mesh, (state.cursor.tolist(), history.steps("val/loss"))) == ([1, 0, 2], [2])
    assert not list(folder.iterdir())


@scenario
def ranks_predict_together_what_one_process_does(mesh):
    folder = Path(mesh.exchange(tempfile.mkdtemp())[0])
    step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh, "zero3")
    state = step.init(lambda: nn.Linear(3, 2))
    x = torch.randn(37, 3, generator=torch.Generator().manual_seed(0))
    broken = {"on": True, "calls": 0}

    def scores(model, batch):
        broken["calls"] += 1
        if broken["on"] and mesh.rank == 1 and broken["calls"] == 2:
            raise ZeroDivisionError("no more")
        return {"y": model(batch) + torch.rand(()), "x": batch}

    def predict(name, state=state, to=None, **options):
        data = fl.Batches(x, 4, shuffle=False)
        return fl.predict(scores, state, data, to=folder / name, **options)

    with pytest.raises(ZeroDivisionError, match="no more"):
        predict("all", mesh=mesh)
    broken.update(on=False, calls=0)
    whole = fl.gather(state)
    if mesh.rank == 0:
        with pytest.raises(FileExistsError, match="begun by 2 processes, and now there are 1"):
            predict("all", whole)
    broken["calls"] = 0
    assert same(mesh, predict("all", mesh=mesh)) == folder / "all"
    assert broken["calls"] == (1 + 4 if mesh.rank else 1), "of ten batches rank 0 had its five"
    assert same(mesh, predict("all", mesh=mesh)) == folder / "all"
    if mesh.rank == 0:
        predict("one", whole)
        files = [{p.name: p.read_bytes() for p in (folder / n).iterdir()} for n in ("all", "one")]
        assert files[0] == files[1] and len(files[0]) == 4
        assert sorted(p.name for p in folder.iterdir()) == ["all", "one"]
    other = fl.Batches(x[: 30 + mesh.rank], 4, shuffle=False)
    with pytest.raises(RankError, match="to predict different things: rank 0 has data"):
        fl.predict(scores, state, other, to=folder / "other", mesh=mesh)


@scenario
def a_demand_to_save_on_one_rank_is_one_on_all(mesh):
    class Saves(fl.base.Effect):
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
    class Cannot(fl.base.Effect):
        ranks = "all"

        def open(self, run):
            fails(mesh, 1)()

    ended(mesh, 1, lambda: fit(mesh, Cannot()))

    class Refuses(fl.base.Effect):
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


@pytest.mark.lightning("M6")
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
