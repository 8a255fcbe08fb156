"""Runs that are cut and resumed with everything around them: data, callbacks, effects, signals."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fnloop as fl
from fnloop.loop.resume import changes, told_once

EXAMPLES, SIZE, STEPS = 22, 4, 15  # a short last batch, and two ends of an epoch in a run
X = torch.randn(EXAMPLES, 3, generator=torch.Generator().manual_seed(0))


def loss(model, x):
    return (model(x).sin() - x.sum(1, keepdim=True)).square().mean()


STEP = fl.pipe(
    loss,
    fl.grad,
    fl.accumulate(2),
    fl.update(
        fl.optim.chain(
            fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(0.05, steps=20))
        )
    ),
    fl.ema(0.9),
)


def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))


def state():
    return STEP.init(network, seed=3)


class Noisy(Dataset):
    """Augments each example with all three sources of random numbers."""

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, i):
        return X[i] + torch.rand(()) + random.random() + np.random.rand()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(x + torch.rand(()) for x in X)


class Walk:
    """A loader that knows its place: a shuffled order, drawn from a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)
        self.order = torch.randperm(EXAMPLES, generator=self.generator)
        self.place = 0

    def __len__(self):
        return -(-EXAMPLES // SIZE)

    def __iter__(self):
        while self.place < EXAMPLES:
            chosen = self.order[self.place : self.place + SIZE]
            self.place += SIZE
            yield X[chosen]
        self.order, self.place = torch.randperm(EXAMPLES, generator=self.generator), 0

    def state_dict(self):
        return {
            "generator": self.generator.get_state(),
            "order": self.order.clone(),
            "place": self.place,
        }

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.order, self.place = state["order"], state["place"]


def epoch_of(epoch):
    generator = torch.Generator().manual_seed(epoch)
    for place in torch.randperm(EXAMPLES, generator=generator).split(SIZE):
        yield X[place] + torch.rand(())


DATA = {
    "tensors in batches": lambda: fl.Batches(X, SIZE, seed=1),
    "tensors, the rest dropped": lambda: fl.Batches(X, SIZE, seed=1, drop_last=True),
    "a dataset that augments": lambda: fl.Batches(Noisy(), SIZE, seed=1),
    "drawn ahead": lambda: fl.data.prefetch(fl.Batches(Noisy(), SIZE, seed=1), depth=3),
    "a loader": lambda: DataLoader(Noisy(), SIZE, shuffle=True),
    "a loader, drawn ahead": lambda: fl.data.prefetch(DataLoader(Noisy(), SIZE, shuffle=True)),
    "a loader of a stream": lambda: DataLoader(Stream(), SIZE),
    "a loader with a state": Walk,
    "a loader with a state, drawn ahead": lambda: fl.data.prefetch(Walk(), depth=3),
    "a list": lambda: list(X.split(SIZE)),
    "a function of the epoch": lambda: epoch_of,
}


def callbacks(folder, data, **options):
    """Everything that has a memory: of stages in the state, of effects in the memos."""

    def bold(state, metrics):
        return state, {**metrics, "twice": fl.Last(2 * float(metrics["loss"]))}

    return [
        bold,
        fl.every(3, fl.validate(loss, fl.Batches(X, 8), params="ema")),
        fl.early_stopping("val/loss", patience=50),
        fl.track(fl.trackers.JSONL(folder / "track.jsonl"), every=2),
        fl.checkpoint(folder / "kept", keep=None, every=1, unit="step", **options),
    ]


def fit(folder, data, steps, resume=False, **options):
    made = data()
    kept = folder / "kept"
    return fl.fit(
        STEP,
        state(),
        made,
        steps=steps,
        callbacks=callbacks(folder, made, **options),
        resume=kept if resume else None,
    )


def tracked(folder):
    """What the tracker was told, by step; of lines with the same step the last one counts."""
    lines = map(json.loads, (folder / "track.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "loss" in line}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_run_that_is_cut_and_resumed_is_one_that_was_not(tmp_path, data):
    whole, history = fit(tmp_path / "whole", data, STEPS)
    for cuts in ((1,), (5, 6, 7), (3, 11), (6, 12), (14,)):
        folder = tmp_path / "-".join(map(str, cuts))
        for cut in cuts:
            fit(folder, data, cut, resume=True)
        resumed, again = fit(folder, data, STEPS, resume=True)
        assert resumed == whole, cuts
        assert again.rows == history.rows and again.steps("val/loss") == [3, 6, 9, 12, 15]
        told, expected = tracked(folder), tracked(tmp_path / "whole")
        assert {step: told[step] for step in expected} == expected
        assert told.keys() - expected.keys() <= set(cuts)  # the end of each part
        for kept in (folder / "kept").iterdir():
            other = tmp_path / "whole" / "kept" / kept.name
            assert fl.store.read_manifest(kept)["leaves"] == fl.store.read_manifest(other)["leaves"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_may_be_more_or_fewer_in_the_resumed_run(tmp_path, workers, persistent):
    def data(n):
        kept = persistent and n > 0
        return lambda: DataLoader(
            Noisy(), SIZE, shuffle=True, num_workers=n, persistent_workers=kept
        )

    whole, _ = fit(tmp_path / "whole", data(0), STEPS)
    fit(tmp_path / "cut", data(workers), 8)
    resumed, history = fit(tmp_path / "cut", data(3 - workers), STEPS, resume=True)
    assert resumed == whole
    assert any("num_workers" in change for change in history.resumed.changes)


def test_every_step_of_a_background_run_can_be_resumed_from(tmp_path):
    whole, _ = fit(tmp_path / "whole", DATA["a loader with a state"], STEPS, background=True)
    for path in sorted((tmp_path / "whole" / "kept").iterdir())[:-1]:
        folder = tmp_path / path.name
        (folder / "kept").mkdir(parents=True)
        path.rename(folder / "kept" / path.name)
        resumed, _ = fit(folder, DATA["a loader with a state"], STEPS, resume=True)
        assert resumed == whole


# What the last save of a run holds


def ramp(state, metrics):
    """A callback whose doing is in the state: what it did in the last step must not be lost."""
    return fl.scale(state, "adamw.lr", 0.9), metrics


def fit_saving_at_the_end(folder, steps, *extra, step=STEP):
    saving = fl.checkpoint(folder, every=10**6, unit="step")
    waiting = fl.early_stopping("val/loss", patience=50)
    checks = fl.every(5, fl.validate(loss, fl.Batches(X, 8), params="ema"))
    everything = [ramp, checks, waiting, *extra, saving]
    data = fl.Batches(X, SIZE, seed=1)
    return fl.fit(step, state(), data, steps=steps, callbacks=everything, resume=folder)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_last_save_holds_what_the_callbacks_of_the_last_step_did(tmp_path, compiled):
    step = fl.compile(STEP, backend="aot_eager") if compiled else STEP
    whole, _ = fit_saving_at_the_end(tmp_path / "whole", STEPS, step=step)
    for cut in (1, 4, 5, 10, 14):
        folder = tmp_path / str(cut)
        returned, _ = fit_saving_at_the_end(folder, cut, step=step)
        assert fl.load(folder, like=returned) == returned, cut
        assert fit_saving_at_the_end(folder, STEPS, step=step)[0] == whole, cut


class Broken(Exception):
    pass


def failing_at(count):
    def fail(state, metrics):
        if int(state.cursor[2]) == count:
            raise Broken
        return state, metrics

    return fail


@pytest.mark.parametrize("cut", [1, 5, 6, 12])
def test_a_callback_that_fails_costs_its_step_and_nothing_else(tmp_path, cut):
    whole, _ = fit_saving_at_the_end(tmp_path / "whole", STEPS, lambda s, m: (s, m))
    with pytest.raises(Broken) as caught:
        fit_saving_at_the_end(tmp_path / "cut", STEPS, failing_at(cut))
    kept = caught.value.state
    assert int(kept.cursor[2]) == cut - 1
    if cut > 1:
        assert fl.load(tmp_path / "cut", like=kept) == kept
    resumed, _ = fit_saving_at_the_end(tmp_path / "cut", STEPS, lambda s, m: (s, m))
    assert resumed == whole


def test_where_the_step_has_given_its_state_away_the_next_run_says_what_is_missing(tmp_path):
    step = fl.compile(STEP, backend="aot_eager")
    with pytest.raises(Broken):
        fit_saving_at_the_end(tmp_path, STEPS, failing_at(6), step=step)
    status = fl.store.read_manifest(fl.latest(tmp_path))["status"]
    assert status == "failed, before the callbacks of its last step"
    _, history = fit_saving_at_the_end(tmp_path, STEPS, step=step)
    assert any("failed in a callback" in change for change in history.resumed.changes)


def test_two_effects_that_save_keep_no_more_than_they_were_told(tmp_path):
    def fit(steps):
        savings = [
            fl.checkpoint(tmp_path / "a", keep=2, every=4, unit="step", name="a"),
            fl.checkpoint(tmp_path / "b", keep=1, every=3, unit="step", name="b"),
        ]
        data = fl.Batches(X, SIZE, seed=1)
        fl.fit(STEP, state(), data, steps=steps, callbacks=savings, resume=tmp_path / "a")

    for steps in (2, 5, 7, 10, 13):
        fit(steps)
        assert len(list((tmp_path / "a").iterdir())) <= 2
        assert len(list((tmp_path / "b").iterdir())) <= 1


# Where it goes on


def test_steps_and_epochs_are_totals_also_where_the_run_begins_with_a_trained_state(tmp_path):
    first, _ = fl.fit(STEP, state(), fl.Batches(X, SIZE, seed=1), epochs=1)

    def fit(folder, **limits):
        saving = fl.checkpoint(folder, every=1, unit="step")
        data = fl.Batches(X, SIZE, seed=1)
        return fl.fit(STEP, first, data, **limits, callbacks=[saving], resume=folder)[0]

    whole = fit(tmp_path / "whole", epochs=3)
    assert whole.cursor.tolist() == [3, 0, 18]
    fit(tmp_path / "cut", steps=9)
    assert fit(tmp_path / "cut", epochs=3) == whole


def test_a_chosen_checkpoint_is_gone_on_from(tmp_path):
    whole, _ = fit(tmp_path / "whole", DATA["a list"], STEPS)
    path = tmp_path / "whole" / "kept" / "step-00000004"
    resumed, history = fl.fit(STEP, state(), DATA["a list"](), steps=STEPS, resume=path)
    assert history.resumed.path == path
    assert fl.tree_equal(resumed.params, whole.params)


def test_what_is_no_checkpoint_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for place, message in (("file", "is a file"), ("step-00000004", "There is no folder")):
        with pytest.raises(fl.errors.CheckpointError, match=message):
            fl.fit(STEP, state(), DATA["a list"](), steps=1, resume=tmp_path / place)


def test_a_run_that_early_stopping_has_ended_stays_ended(tmp_path, caplog):
    def fit(patience):
        callbacks = [
            fl.every(1, fl.validate(lambda m, x: {"loss": fl.Last(1.0)}, [X]), unit="epoch"),
            fl.early_stopping("val/loss", patience=patience),
            fl.checkpoint(tmp_path),
        ]
        data = fl.Batches(X, SIZE, seed=1)
        return fl.fit(STEP, state(), data, epochs=9, callbacks=callbacks, resume=tmp_path)

    first, history = fit(2)
    assert history.reason == "val/loss has not improved on 1 for 2 checks"
    for _ in range(2):
        again, repeated = fit(2)
        assert fl.tree_equal(again.params, first.params) and again.cursor[2] == first.cursor[2]
        assert repeated.rows == history.rows
        assert (repeated.status, repeated.reason) == (history.status, history.reason)
    assert "the run had stopped there, so no step is done" in caplog.text
    more, history = fit(4)
    assert history.reason == "val/loss has not improved on 1 for 4 checks"
    assert int(more.cursor[0]) == int(first.cursor[0]) + 2


def test_a_time_limit_is_told_from_the_end(tmp_path):
    slow = fl.effect(lambda s, m: time.sleep(0.01))
    _, history = fl.fit(STEP, state(), DATA["a list"](), seconds=0.1, callbacks=[slow])
    assert (history.status, history.reason) == ("stopped", "the time limit of 0.1 seconds")


# What is told


def resumed_with(tmp_path, step=STEP, data=None):
    fit(tmp_path, DATA["tensors in batches"], 8)
    made = data or fl.Batches(X, SIZE, seed=1)
    _, history = fl.fit(
        step,
        step.init(network(), seed=3),
        made,
        steps=STEPS,
        callbacks=callbacks(tmp_path, made),
        resume=tmp_path / "kept",
    )
    return history.resumed


def test_nothing_has_changed(tmp_path, caplog):
    resumed = resumed_with(tmp_path)
    assert resumed.changes == () and resumed.skipped == ()
    assert resumed.path == tmp_path / "kept" / "step-00000008"
    assert str(resumed).endswith("step-00000008 (epoch 2, 8 batches)")
    assert str(resumed) in caplog.text


@pytest.mark.lightning("K11")
def test_what_has_changed_is_told(tmp_path):
    other = fl.pipe(
        loss, fl.grad, fl.update(fl.optim.adamw(0.01)), fl.ema(0.5), fl.ema(0.9, name="slow")
    )
    resumed = resumed_with(tmp_path, other, fl.Batches(X[:-1], 8, seed=1))
    told = "\n".join(resumed.changes)
    for line in (
        "accumulate.k: 2 -> gone",
        "adamw.lr: new, 0.01",
        "ema.decay: 0.9 -> 0.5",
        "slow.decay: new, 0.9",
        "data.examples: 22 -> 21",
        "data.batch_size: 4 -> 8",
        "slow: new, with fresh memory",
    ):
        assert line in told, told


def test_a_setting_that_a_flag_sets_is_told_once_and_one_of_many_by_its_name():
    then = {"sgd.lr": 0.1, "lr": 0.1, "model": {"name": "a", "width": 8}}
    now = {"sgd.lr": 0.2, "lr": 0.2, "model": {"name": "a", "width": 9}}
    assert list(told_once(changes("", then, now))) == ["sgd.lr: 0.1 -> 0.2", "model.width: 8 -> 9"]


def test_a_stage_that_is_gone_is_told(tmp_path):
    resumed = resumed_with(tmp_path, fl.pipe(*STEP_WITHOUT_EMA))
    assert "ema: no stage of that name now; its memory is kept, unused" in resumed.changes


STEP_WITHOUT_EMA = (
    loss,
    fl.grad,
    fl.accumulate(2),
    fl.update(
        fl.optim.chain(
            fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(0.05, steps=20))
        )
    ),
)


def test_another_number_of_threads_is_told(tmp_path):
    fit(tmp_path, DATA["tensors in batches"], 8)
    torch.set_num_threads(2)
    try:
        _, history = fit(tmp_path, DATA["tensors in batches"], 9, resume=True)
    finally:
        torch.set_num_threads(1)
    assert any(change.startswith("threads: 1 -> 2") for change in history.resumed.changes)


def test_another_batch_size_of_a_loader_goes_on_at_the_same_example(tmp_path):
    loader = lambda size: DataLoader(X, size)  # noqa: E731
    drawn = []
    fl.fit(STEP, state(), loader(4), steps=3, callbacks=[fl.checkpoint(tmp_path)])
    look = fl.stage(lambda s, m: (drawn.append(s.cursor.tolist()), (s, m))[1], "callback")
    _, history = fl.fit(STEP, state(), loader(6), steps=4, callbacks=[look], resume=tmp_path)
    assert drawn == [[0, 3, 4]]  # 12 of 22 were read: two batches of six
    assert any("goes on at batch 2" in change for change in history.resumed.changes)


def test_a_position_that_the_data_cannot_use_is_told(tmp_path):
    fl.fit(STEP, state(), Walk(), steps=3, callbacks=[fl.checkpoint(tmp_path)])
    _, history = fl.fit(STEP, state(), list(X.split(SIZE)), steps=5, resume=tmp_path)
    assert any("which this data cannot restore" in line for line in history.resumed.changes)


def test_a_start_from_the_beginning_is_told(tmp_path, caplog):
    _, history = fl.fit(STEP, state(), DATA["a list"](), steps=1, resume=tmp_path / "none")
    assert history.resumed is None
    assert "none does not exist yet: nothing is resumed, the run starts here" in caplog.text


def damage(path):
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def test_a_damaged_checkpoint_is_skipped_and_told(tmp_path):
    whole, _ = fit(tmp_path / "whole", DATA["a list"], STEPS)
    fit(tmp_path, DATA["a list"], 8)
    damage(tmp_path / "kept" / "step-00000008")
    with pytest.warns(UserWarning, match="step-00000008 was skipped: .*sha256"):
        resumed, history = fit(tmp_path, DATA["a list"], STEPS, resume=True)
    assert history.resumed.cursor.count == 7 and len(history.resumed.skipped) == 1
    assert resumed == whole


def test_where_all_are_damaged_nothing_starts_from_zero(tmp_path):
    fit(tmp_path, DATA["a list"], 2)
    for path in (tmp_path / "kept").iterdir():
        damage(path)
    with pytest.raises(fl.errors.CheckpointError, match=r"No checkpoint in .* is whole"):
        fit(tmp_path, DATA["a list"], STEPS, resume=True)


def test_a_memo_that_an_effect_cannot_use_names_the_effect(tmp_path):
    class Note(fl.base.Effect):
        name = "history"

        def __call__(self, state, metrics):
            pass

        def memo(self):
            return {"rows": 3}

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    run = fl.run(
        step, step.init(network()), [X], steps=1, callbacks=[Note(), fl.checkpoint(tmp_path)]
    )
    for _ in run:
        pass
    message = r"a memo for the effect 'history' that cannot"
    with pytest.raises(fl.errors.CheckpointError, match=message):
        fl.fit(step, step.init(network()), [X], steps=2, resume=tmp_path)


# Signals

SCRIPT = """
import sys, time, torch, fnloop as fl
torch.set_num_threads(1)
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.01)))
state = step.init(lambda: torch.nn.Linear(2, 1), seed=0)
data = fl.Batches(torch.arange(80.0).reshape(40, 2), 4)
slow = fl.effect(lambda s, m: time.sleep(0.005))
saving = fl.checkpoint(sys.argv[1], keep=2, every=10**6, unit="step")
state, history = fl.fit(step, state, data, steps=int(sys.argv[2]), callbacks=[slow, saving],
                        resume=sys.argv[1])
print(history.status, "|", history.reason, "|", state.cursor.tolist()[2], flush=True)
sys.exit(143 if history.reason.endswith("SIGTERM") else 0)
"""


def started(folder, steps=10**6):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not folder.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    return process


@pytest.mark.lightning("G1")
def test_sigterm_saves_and_the_next_job_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = started(folder)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "SIGTERM: finishing this step" in err, err
    status, reason, count = (part.strip() for part in out.split("|"))
    assert (status, reason) == ("interrupted", "interrupted by SIGTERM")
    assert fl.latest(folder).name == f"step-{int(count):08d}"
    process = started(folder, int(count) + 3)
    out, err = process.communicate(timeout=60)
    assert out.startswith("completed") and f", {int(count)} batches)" in err


@pytest.mark.lightning("G2")
def test_sigusr1_saves_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = started(folder)
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while fl.latest(folder) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert fl.latest(folder) is not None and process.poll() is None
    process.kill()
    process.communicate()


@pytest.mark.parametrize("where", ["the first draw", "the first step", "the first check"])
def test_a_signal_in_the_first_step(tmp_path, where):
    asked = []

    def press(here):
        if here == where and not asked:
            asked.append(here)
            signal.raise_signal(signal.SIGTERM)

    def epochs(epoch):
        for batch in X.split(SIZE):
            press("the first draw")
            yield batch

    def watched(model, x):
        press("the first step")
        return loss(model, x)

    def check(model, x):
        press("the first check")
        return loss(model, x)

    step = fl.pipe(watched, *STEP_WITHOUT_EMA[1:])
    callbacks = [fl.validate(check, fl.Batches(X, 8)), fl.checkpoint(tmp_path)]
    last, history = fl.fit(step, step.init(network(), seed=3), epochs, steps=9, callbacks=callbacks)
    assert (history.status, history.reason) == ("interrupted", "interrupted by SIGTERM")
    assert 1 <= int(last.cursor[2]) <= 2 and fl.load(tmp_path, like=last) == last


def test_data_whose_workers_the_signal_ended_is_no_failure(tmp_path):
    def epochs(epoch):
        yield from X.split(SIZE)[:3]
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    saving = fl.checkpoint(tmp_path)
    last, history = fl.fit(STEP, state(), epochs, steps=9, callbacks=[saving])
    assert (history.status, history.reason) == ("interrupted", "interrupted by SIGTERM")
    assert fl.load(tmp_path, like=last) == last


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, caplog):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        press = fl.effect(lambda s, m: signal.raise_signal(signal.SIGTERM))
        _, history = fl.fit(STEP, state(), DATA["a list"](), steps=3, callbacks=[press])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert history.status == "completed"


def test_a_setting_that_is_nan_has_not_changed(tmp_path):
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    for epochs in (1, 2):
        _, history = fl.fit(
            step,
            step.init(torch.nn.Linear(1, 1), seed=0),
            [torch.ones(2, 1)],
            epochs=epochs,
            callbacks=[fl.checkpoint(tmp_path)],
            resume=tmp_path,
            config={"threshold": float("nan")},
        )
    assert history.resumed.changes == ()


class Named(torch.nn.Module):
    def __init__(self, name, width=2):
        super().__init__()
        self.add_module("body", torch.nn.Linear(2, 2))
        self.add_module(name, torch.nn.Linear(2, width))
        self.name = name

    def forward(self, x):
        return self.get_submodule(self.name)(self.body(x))


@pytest.mark.filterwarnings("ignore:The checkpoint .* (has leaves|lacks)")
@pytest.mark.parametrize("now", [("renamed",), ("head", 3)], ids=["renamed", "of another shape"])
def test_a_run_of_another_model_says_which_call_loads_what_fits(now, tmp_path):
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    data, path = fl.Batches(torch.ones(8, 2), 4), tmp_path / "it's a run"
    saves = fl.checkpoint(path)
    before, _ = fl.fit(step, step.init(Named("head")), data, epochs=1, callbacks=[saves])
    state = step.init(Named(*now))
    with pytest.raises(fl.errors.CheckpointError, match="take the state of") as caught:
        fl.fit(step, state, data, epochs=2, resume=path)
    call = re.search(r"fl\.load\(.*prune=True\)", str(caught.value))[0]
    loaded = eval(call, {"fl": fl, "state": state})
    assert torch.equal(loaded.params["body.weight"], before.params["body.weight"])
    after, _ = fl.fit(step, loaded, data, epochs=1)
    assert int(after.step) == 2 * int(before.step)
