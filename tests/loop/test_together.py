"""Steps that a loop does in one call: nothing of a run but its speed tells that they are."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.loop.together import Merged
from fnloop.values.between import Between, BetweenError


def mse(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Tanh(), nn.Linear(4, 1))


def examples(n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randn(n, 1, generator=generator)


def data(n=50):
    return fl.Batches(examples(n), batch_size=4, seed=1)  # 13 batches, the last of 2


PIPE = fl.pipe(mse, fl.grad, fl.update(fl.optim.adamw(0.05)), fl.ema(0.9))
ONE = fl.compile(PIPE, backend="aot_eager", donate=True)
EIGHT = fl.compile(PIPE, backend="aot_eager", donate=True, steps=8)
KEEPING = fl.compile(PIPE, backend="aot_eager", steps=8)


class Seen(fl.base.Effect):
    """Notes what it is shown, without the state."""

    name = "seen"

    def open(self, run):
        self.rows, self.lengths = [], []
        self._count = int(run.state.cursor[2])

    def __call__(self, state, metrics):
        self.rows.append((state.cursor.tolist(), fl.metrics.numbers(metrics)))
        if not isinstance(state, Between):
            self.lengths.append(int(state.cursor[2]) - self._count)
            self._count = int(state.cursor[2])

    def needs_state(self, cursor, reported):
        return False


def fit(step, callbacks=(), given=None, state=None, **limits):
    """A run as `fl.fit` does it: its last state, history, and what an effect has seen."""
    seen, history = Seen(), fl.History(every=5)
    state = step.init(net(), seed=2) if state is None else state
    everything = [*callbacks, history, seen]
    given = data() if given is None else given
    state, _ = fl.fit(step, state, given, callbacks=everything, progress=False, **limits)
    return state, history, seen


def same(one, many):
    """Whether two results of `fit` are the same to the bit."""
    assert fl.tree_diff(one[0], many[0]) == ""
    assert repr(one[1].rows) == repr(many[1].rows)  # nan is not nan
    assert repr(one[2].rows) == repr(many[2].rows)
    assert (one[1].status, one[1].reason) == (many[1].status, many[1].reason)
    assert set(one[2].lengths) == {1}
    return many[2].lengths


@pytest.mark.parametrize("step", [EIGHT, KEEPING], ids=["donating", "keeping"])
def test_a_run_has_the_same_bits_and_its_calls_end_with_the_epochs(step):
    assert same(fit(ONE, epochs=2), fit(step, epochs=2)) == [1, 8, 4, 8, 5]


def test_steps_end_a_call():
    assert same(fit(ONE, steps=12), fit(EIGHT, steps=12)) == [1, 8, 3]


def test_a_step_that_nobody_donates_is_run_as_it_is_given():
    runs = []
    for step in (fl.compile(PIPE, backend="aot_eager"), KEEPING):
        seen = Seen()
        *_, (state, _) = fl.run(step, step.init(net()), data(), steps=20, callbacks=[seen])
        runs.append((state, seen))
    (one, rows), (many, found) = runs
    assert fl.tree_diff(one, many) == "" and rows.rows == found.rows
    assert found.lengths == [1, 8, 4, 7]


def test_a_run_yields_the_state_after_each_call_and_the_merge_of_its_metrics():
    counts, weights, losses, single = [], [], [], []
    for state, metrics in fl.run(EIGHT, EIGHT.init(net()), data(), steps=20):
        counts.append(int(state.cursor[2]))
        weights.append(float(metrics["loss"].weight))
        losses.append(float(metrics["loss"].total))
    for _, metrics in fl.run(ONE, ONE.init(net()), data(), steps=20):
        single.append(float(metrics["loss"].total))
    assert counts == [1, 9, 13, 20] and weights == [4, 32, 14, 28]
    assert sum(losses) == pytest.approx(sum(single))


def test_merged_metrics_are_merged_when_they_are_looked_at():
    merged = Merged([{"loss": fl.Mean(1.0, 1)}, {"loss": fl.Mean(5.0, 1), "lr": fl.Last(2.0)}])
    assert [*merged] == ["loss", "lr"] and len(merged) == 2 and float(merged["loss"]) == 3.0
    assert "_whole" in vars(merged) and repr(merged) == repr(dict(merged))
    assert "_whole" not in vars(Merged([{"loss": fl.Mean(1.0, 1)}]))


@fl.tree
class Halve(fl.base.Callback):
    """Halves the learning rate every three batches, and counts its calls."""

    label = "halve"
    name: str = "halve"

    def is_due(self, cursor):
        return cursor.count % 3 == 0

    def init_state(self, state, metrics):
        return torch.zeros((), dtype=torch.int64)

    def __call__(self, state, x):
        count = int(state.cursor[2])
        state = state.put(self.name, state[self.name] + 1)
        return (fl.scale(state, "adamw.lr", 0.5) if count % 3 == 0 else state), x


def test_a_call_ends_where_a_callback_is_due():
    assert same(fit(ONE, [Halve()], steps=13), fit(EIGHT, [Halve()], steps=13)) == [
        1, 2, 3, 3, 3, 1,
    ]  # fmt: skip


def test_a_callback_that_does_not_say_when_it_is_due_is_due_at_every_step():
    seen = lambda state, metrics: (state, {**metrics, "n": fl.Sum(state.calls)})  # noqa: E731
    for callback in (seen, fl.effect(lambda state, metrics: state.params)):
        lengths = same(fit(ONE, [callback], steps=6), fit(EIGHT, [callback], steps=6))
        assert lengths == [1] * 6


def test_every_merges_what_each_step_reports():
    def callbacks():
        validate = fl.validate(mse, examples(6, seed=5), params="ema")
        shown = []
        note = fl.effect(lambda s, m: shown.append((int(s.step), fl.metrics.numbers(m))))
        every = fl.every(5, note)
        look = fl.stage(lambda s, m: (s, {**m, "mean": fl.Last(m["loss"].value())}), "callback")
        return shown, [fl.every(4, look, name="look"), fl.every(6, validate), every]

    first, many = callbacks(), callbacks()
    lengths = same(fit(ONE, first[1], epochs=2), fit(EIGHT, many[1], epochs=2))
    assert first[0] == many[0] and len(lengths) < 20


@pytest.mark.parametrize("monitor", ["loss", "val/loss"])
def test_early_stopping_stops_at_the_same_step(monitor):
    def callbacks():
        validate = fl.every(3, fl.validate(mse, examples(6, seed=5)))
        return [validate, fl.early_stopping(monitor, patience=2)]

    one, many = fit(ONE, callbacks(), epochs=9), fit(EIGHT, callbacks(), epochs=9)
    lengths = same(one, many)
    assert one[1].status == "stopped" and (set(lengths) == {1}) is (monitor == "loss")


def test_a_guard_takes_the_same_steps_back():
    pipe = fl.pipe(PIPE, fl.guard(fl.rules.spike("loss", sigmas=0.5, warmup=3)))
    one, many = (
        fl.compile(pipe, backend="aot_eager", donate=True, steps=steps) for steps in (1, 8)
    )
    first = fit(one, epochs=2)
    assert same(first, fit(many, epochs=2))[:2] == [1, 8]
    assert int(first[0].step) < int(first[0].calls)


def test_steps_that_are_all_skipped_end_the_run_at_the_same_batch():
    x, y = examples(240)
    bad = fl.Batches((x / 0, y), 4)
    found = []
    for step in (ONE, EIGHT):
        with pytest.warns(UserWarning, match="skipped"), pytest.raises(RuntimeError) as caught:
            fl.fit(step, step.init(net()), bad, epochs=4, progress=False)
        found.append(caught.value)
    one, many = found
    assert str(one) == str(many) and fl.tree_diff(one.state, many.state) == ""


def saved(step, folder, steps, **options):
    saving = fl.checkpoint(folder, keep=None, every=5, unit="step", **options)
    return fit(step, [saving], steps=steps, resume=folder)


@pytest.mark.parametrize("ends", [7, 10])
def test_checkpoints_are_the_same_and_a_run_goes_on_from_the_middle_of_a_call(tmp_path, ends):
    whole = saved(ONE, tmp_path / "one", 20)
    saved(EIGHT, tmp_path / "many", ends)
    lengths = saved(EIGHT, tmp_path / "many", 20)
    assert fl.tree_diff(whole[0], lengths[0]) == "" and whole[1].rows == lengths[1].rows
    left, right = (
        {p.name: p for p in (tmp_path / name).glob("step-*")} for name in ("one", "many")
    )
    assert left.keys() == right.keys() - {"step-00000007"}
    for name, path in left.items():
        pair = [fl.load(each, like=whole[0]) for each in (path, right[name])]
        assert fl.tree_diff(*pair) == ""


def test_a_monitored_metric_of_each_step_is_saved_with_its_state(tmp_path):
    def best(step, folder):
        saving = fl.checkpoint(folder, keep=2, monitor="loss")
        result = fit(step, [saving], epochs=1)
        return result, saving.best()

    (one, first), (many, second) = best(ONE, tmp_path / "one"), best(EIGHT, tmp_path / "many")
    same(one, many)
    assert first.name == second.name
    assert fl.tree_diff(*(fl.load(path, like=one[0]) for path in (first, second))) == ""


def test_sigusr1_saves_after_the_current_step(tmp_path):
    def batches():
        for i, batch in zip(range(20), data(), strict=False):
            if i == 4:  # as the fifth is drawn, the fourth is done
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    saving = fl.checkpoint(tmp_path / "a", every=100, unit="step", keep=None)
    fit(EIGHT, [saving], given=batches(), steps=12)
    assert (tmp_path / "a" / "step-00000005").exists()


def failing(at, error):
    """Data that raises at a batch."""

    def batches(epoch):
        for i, batch in enumerate(data()):
            if i == at:
                raise error
            yield batch

    return batches


@pytest.mark.parametrize("step", [EIGHT, KEEPING], ids=["donating", "keeping"])
@pytest.mark.parametrize("at", [1, 4, 9])
def test_data_that_fails_loses_none_of_the_steps_before(step, at):
    found = []
    for each in (ONE, step):
        seen, error = Seen(), OSError("the disk")
        with pytest.raises(OSError) as caught:
            fl.fit(each, each.init(net()), failing(at, error), epochs=1, callbacks=[seen])
        assert caught.value is error
        found.append((error.state, error.history.rows, seen.rows))
    (one, rows, seen), (many, *others) = found
    assert fl.tree_diff(one, many) == "" and others == [rows, seen]
    assert int(many.calls) == at - 1  # a function is read one batch ahead


@pytest.mark.parametrize("step", [EIGHT, KEEPING], ids=["donating", "keeping"])
def test_a_step_that_fails_loses_none_of_those_before(step):
    def checked(model, batch):
        assert batch[1].isfinite().all()
        return mse(model, batch)

    batches = [*data()]
    batches[5] = (batches[5][0], batches[5][1] / 0)
    found = []
    for steps in (1, 8):
        pipe = fl.pipe(checked, fl.grad, fl.update(fl.optim.adamw(0.05)))
        each = fl.compile(pipe, backend="aot_eager", donate=step.donate, steps=steps)
        seen = Seen()
        with contextlib.ExitStack() as stack:
            caught = stack.enter_context(pytest.raises(AssertionError))
            for _ in fl.run(each, each.init(net()), batches, epochs=1, callbacks=[seen]):
                pass
        found.append((caught.value.state, seen.rows))
    (one, rows), (many, others) = found
    assert fl.tree_diff(one, many) == "" and rows == others
    assert int(many.calls) == int(many.cursor[2]) == 5


def test_the_first_interrupt_ends_the_call_with_the_step():
    def batches():
        for i, batch in enumerate(data()):
            if i == 4:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    one, many = (fit(step, given=batches(), steps=12) for step in (ONE, EIGHT))
    assert same(one, many) == [1, 4]
    assert one[1].status == "interrupted" and int(one[0].calls) == 5


def test_a_time_limit_ends_the_call():
    def batches():
        for batch in data():
            time.sleep(0.1)
            yield batch

    EIGHT(EIGHT.init(net()), [next(iter(data()))])
    start = time.perf_counter()
    state, history, _ = fit(EIGHT, given=batches(), seconds=0.35)
    assert time.perf_counter() - start < 0.7
    assert history.status == "stopped" and 2 <= int(state.calls) <= 5


def test_an_iterator_that_ends_in_the_middle_of_a_call():
    one, many = [], []
    for step, found in ((ONE, one), (EIGHT, many)):
        with pytest.warns(UserWarning, match="ended after 6 batches"):
            found += fit(step, given=iter([*data()][:6]), steps=12)
    assert same(one, many) == [1, 5]


def test_a_state_that_is_sent_is_gone_on_with():
    loop = fl.run(EIGHT, EIGHT.init(net(), seed=4), data(), steps=20)
    for state, _ in loop:
        if int(state.cursor[2]) == 9:
            state, _ = loop.send(EIGHT.init(net(), seed=5).replace(cursor=state.cursor))
    first = ONE.init(net(), seed=5).replace(cursor=fl.data.Cursor(0, 36, 9).tensor())
    *_, (again, _) = fl.run(ONE, first, data(), steps=11)
    assert fl.tree_diff(state, again) == ""


class Careless(fl.base.Callback):
    """Reads the state though it says that it does not need it."""

    def __init__(self, read):
        self.read = read

    def is_due(self, cursor):
        return False

    def __call__(self, state, metrics):
        self.read(state)
        return state, metrics


READS = {
    "parameters": lambda s: s.params,
    "a field": lambda s: s.step,
    "another slot": lambda s: s["ema"],
    "leaves": fl.tree_leaves,
    "a change": lambda s: s.replace(step=torch.tensor(1)),
    "a copy": lambda s: fl.tree_map(torch.clone, s),
}


@pytest.mark.parametrize("name", READS)
def test_a_callback_that_reads_what_it_has_said_it_does_not_need_is_told(name):
    error = KeyError if name == "another slot" else BetweenError
    with pytest.raises(error) as caught:
        fit(EIGHT, [Careless(READS[name])], steps=5)
    if error is BetweenError:
        assert "after 2 batches is gone" in str(caught.value) and "needs_state" in str(caught.value)
    assert int(caught.value.state.calls) == 5  # that state is whole, and says so
    assert caught.value.state.cursor.tolist() == [0, 20, 5]


@pytest.mark.lightning("O2")
def test_what_a_state_between_steps_shows():
    shown = []
    fit(EIGHT, [Careless(lambda s: shown.append(repr(s)))], steps=3)
    assert shown[1:] == ["Between(cursor=[0, 8, 2])", shown[-1]] and "params" in shown[-1]
