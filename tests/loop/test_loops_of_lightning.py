"""What users of Lightning rely on in loops, and defects of its 2.6.6 that must not be here."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def state(build=lambda: nn.Linear(2, 1)):
    return STEP.init(build, seed=0)


def data(examples=40, batch_size=4):
    make = torch.Generator().manual_seed(0)
    return fl.Batches(torch.randn(examples, 2, generator=make), batch_size)


def asks_at(*counts):
    """A callback that asks for a stop at some batches only."""

    def ask(state, metrics):
        return state, {**metrics, "ask": fl.stop(int(state.cursor[2]) in counts, "asked")}

    return ask


@pytest.mark.lightning("T10", "T12")
@pytest.mark.parametrize(
    ("asked", "least", "ended"),
    [
        ((3,), {"min_steps": 3}, 3),  # not before is not the same as after
        ((3,), {"min_steps": 4}, None),  # Lightning's should_stop latches, and would end it at 4
        ((3, 7), {"min_steps": 4}, 7),
        ((9, 10), {"min_epochs": 1}, 10),
        ((5,), {"min_epochs": 1}, None),
        ((5, 12), {"min_epochs": 1, "min_steps": 12}, 12),
        ((5, 12), {"min_epochs": 1, "min_steps": 13}, None),
        ((5,), {"min_steps": 0, "min_epochs": 0}, 5),
    ],
)
def test_a_stop_that_came_too_early_does_not_latch(asked, least, ended):
    after, history = fl.fit(STEP, state(), data(), steps=20, callbacks=[asks_at(*asked)], **least)
    assert int(after.cursor[2]) == (ended or 20)
    assert history.status == ("stopped" if ended else "completed")


def test_patience_that_ran_out_too_early_ends_the_run_at_the_next_check_that_is_no_better():
    values = iter([1.0, 2.0, 2.0, 0.5, 1.0, 1.0, 9.0])

    def value(state, metrics):
        return state, {**metrics, "value": fl.Last(next(values))}

    stopping = fl.early_stopping("value", patience=2)
    after, history = fl.fit(
        STEP, state(), data(), steps=7, min_steps=4, callbacks=[value, stopping]
    )
    # At 3 it was held back, at 4 it was better, and the count began anew.
    assert int(after.cursor[2]) == 6 and history.reason.endswith("0.5 for 2 checks")


def test_least_is_counted_from_the_given_state_and_is_no_more_than_most():
    after, _ = fl.fit(STEP, state(), data(), steps=5)
    again, _ = fl.fit(STEP, after, data(), steps=9, min_steps=6, callbacks=[asks_at(8, 12)])
    assert int(again.cursor[2]) == 12
    for wrong in ({"steps": 3, "min_steps": 4}, {"epochs": 3, "min_epochs": 4}):
        with pytest.raises(ValueError, match=r"min_(steps|epochs)=4 is more than (steps|epochs)=3"):
            fl.fit(STEP, state(), data(), **wrong)


def test_a_time_limit_is_not_held_back():
    def slow(state, metrics):
        time.sleep(0.01)
        return state, metrics

    _, history = fl.fit(STEP, state(), data(), seconds=0.2, min_epochs=100, callbacks=[slow])
    assert history.status == "stopped" and "time limit" in history.reason


@pytest.mark.lightning("T14", "T17", "V10")
def test_one_is_a_batch_and_one_point_nought_is_all():
    assert fl.data.limit(data(), 1).batches == 1 and fl.data.limit(data(), 1.0).batches == 10
    every = {n: fl.every(n, fl.validate(loss, data()), unit="epoch") for n in (1, 1.0)}
    for callback in every.values():  # of every it is not
        _, history = fl.fit(STEP, state(), data(), epochs=2, callbacks=[callback])
        assert history.steps("val/loss") == [10, 20]


@pytest.mark.lightning("T19")
def test_validation_before_the_first_step_is_kept_and_disturbs_nothing(tmp_path):
    """Lightning's sanity check throws its results away, and is of two batches."""
    validate = fl.validate(loss, data(20))
    first = [fl.every(1, validate, unit="epoch", first=True)]
    saving = fl.checkpoint(tmp_path / "a", monitor="val/loss", keep=1)
    tracked = fl.track(fl.trackers.CSV(tmp_path / "a.csv"))
    stopping = fl.early_stopping("val/loss", patience=1)
    with_first, history = fl.fit(
        STEP, state(), data(), epochs=2, callbacks=[*first, stopping, saving, tracked]
    )
    without = [fl.every(1, validate, unit="epoch"), stopping]
    plain, _ = fl.fit(STEP, state(), data(), epochs=2, callbacks=without)
    assert fl.tree_equal(with_first.params, plain.params)
    assert with_first["early_stopping"]["checks"] == 2  # it was not told of the first
    assert history.steps("val/loss") == [0, 10, 20]
    assert history[0] == {
        "epoch": 0,
        "step": 0,
        "val/loss": fl.evaluate(loss, state(), data(20))["loss"],
    }
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert (
        len(lines) == 4
        and dict(zip(lines[0].split(","), lines[1].split(","), strict=True))["step"] == "0"
    )
    _, resumed = fl.fit(
        STEP, state(), data(), epochs=3, callbacks=[*first, stopping], resume=tmp_path / "a"
    )
    assert resumed.steps("val/loss") == [0, 10, 20, 30]


def test_first_is_for_what_evaluates():
    for callback in (fl.early_stopping("loss"), asks_at(1), fl.effect(lambda s, m: None)):
        with pytest.raises(TypeError, match=r"first=True\) is for a validation"):
            fl.every(2, callback, first=True)


def test_a_failure_in_the_first_validation_has_the_state():
    def broken(model, x):
        raise RuntimeError("broken")

    callbacks = [fl.every(5, fl.validate(broken, data()), first=True)]
    with pytest.raises(RuntimeError, match="broken") as told:
        fl.fit(STEP, state(), data(), steps=9, callbacks=callbacks)
    assert fl.tree_equal(told.value.state, state())


@pytest.mark.lightning("T17")
def test_seconds_for_callbacks_effects_and_checkpoints(tmp_path):
    def slow(state, metrics):
        time.sleep(0.01)
        return state, metrics

    seen = []
    saving = fl.checkpoint(tmp_path, keep=None, every=0.2, unit="second", last=False)
    _, history = fl.fit(
        STEP,
        state(),
        data(),
        steps=100,
        callbacks=[
            slow,
            fl.every(0.25, fl.validate(loss, data()), unit="second"),
            fl.every(
                0.1, fl.effect(lambda s, m: seen.append(float(m["loss"].weight))), unit="second"
            ),
            saving,
        ],
    )
    assert 2 <= len(history["val/loss"]) <= 1 + history.seconds / 0.25
    assert 4 <= len(seen) <= 1 + history.seconds / 0.1 and sum(seen) == 400
    saved = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("step-"))
    assert 2 <= len(saved) <= 1 + history.seconds / 0.2
    with pytest.raises(ValueError, match=r'unit="?\'?second\'? needs every='):
        fl.checkpoint(tmp_path, unit="second")


@pytest.mark.lightning("K3")
def test_checkpoints_at_fractions_of_an_epoch(tmp_path):
    saving = fl.checkpoint(tmp_path, keep=None, every=0.5, unit="epoch")
    fl.fit(STEP, state(), data(36), epochs=2, callbacks=[saving])
    saved = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("step-"))
    assert [int(name[5:]) for name in saved] == [5, 9, 14, 18]


def test_a_fraction_of_an_epoch_of_a_stream_is_told_at_the_start():
    stream = lambda epoch: iter([torch.ones(4, 2)] * 3)  # noqa: E731
    for callback in (fl.validate(loss, data()), fl.effect(lambda s, m: None)):
        with pytest.raises(ValueError, match="does not know how many batches"):
            fl.fit(
                STEP, state(), stream, epochs=1, callbacks=[fl.every(0.5, callback, unit="epoch")]
            )


@pytest.mark.lightning("K2", "D1")
def test_random_numbers_and_half_filled_means_survive_a_resume(tmp_path):
    """Defect 1: neither is in Lightning's checkpoints."""

    def build():
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    whole, history = fl.fit(STEP, state(build), data(), epochs=1)
    for k in range(1, 10):
        folder = tmp_path / str(k)
        fl.fit(STEP, state(build), data(), steps=k, callbacks=[fl.checkpoint(folder)])
        torch.rand(k)
        again, told = fl.fit(STEP, state(build), data(), epochs=1, resume=folder)
        assert fl.tree_equal(again, whole)
        assert told["loss"] == history["loss"] and len(told) == 1


@pytest.mark.lightning("C3", "D5")
@pytest.mark.parametrize("steps", [7, 10, 13])
def test_the_newest_checkpoint_is_the_last_state(tmp_path, steps):
    """Defect 5: with a monitor, Lightning's last.ckpt may be the last improvement."""
    worse = itertools.count()

    def value(state, metrics):
        return state, {**metrics, "value": fl.Last(float(next(worse)))}

    saving = fl.checkpoint(tmp_path, keep=1, monitor="value", every=3, unit="step")
    after, _ = fl.fit(STEP, state(), data(), steps=steps, callbacks=[fl.every(2, value), saving])
    assert fl.tree_equal(fl.load(fl.latest(tmp_path), like=state()).params, after.params)
    assert fl.best(tmp_path).name == "step-00000002"


@pytest.mark.lightning("C5", "D9")
def test_patience_is_the_one_that_is_given_and_not_the_one_that_was_saved(tmp_path):
    """Defect 9: in Lightning the checkpoint's patience overrides the constructor's."""

    def callbacks(patience):
        return [
            fl.every(1, fl.validate(loss, data()), unit="epoch"),
            fl.early_stopping("val/loss", patience=patience, min_delta=1e9),
        ]

    saving = fl.checkpoint(tmp_path)
    after, history = fl.fit(STEP, state(), data(), epochs=9, callbacks=[*callbacks(2), saving])
    assert history.status == "stopped" and after.cursor[0] == 3
    after, history = fl.fit(
        STEP, state(), data(), epochs=9, callbacks=callbacks(4), resume=tmp_path
    )
    assert history.status == "stopped" and after.cursor[0] == 5
    assert history.reason.endswith("for 4 checks")


@pytest.mark.lightning("D9")
def test_equal_is_no_improvement_and_the_message_does_not_say_otherwise():
    """Defect 9: its message says "≥ min_delta" of a strict test."""
    values = iter([1.0, 0.75, 0.5])

    def value(state, metrics):
        return state, {**metrics, "value": fl.Last(next(values))}

    stopping = fl.early_stopping("value", patience=2, min_delta=0.5)
    after, history = fl.fit(STEP, state(), data(), steps=3, callbacks=[value, stopping])
    assert (
        int(after.cursor[2]) == 3 and history.reason == "value has not improved on 1 for 2 checks"
    )


@pytest.mark.lightning("M10")
def test_a_second_fit_goes_on_and_does_nothing_twice():
    """In Lightning a second fit of one Trainer often does nothing (#12789)."""
    first, _ = fl.fit(STEP, state(), data(), epochs=1)
    second, history = fl.fit(STEP, first, data(), epochs=1)
    both, _ = fl.fit(STEP, state(), data(), epochs=2)
    assert fl.tree_equal(second, both) and history.status == "completed"


def test_what_goes_by_the_clock_ends_a_call_of_several_steps():
    def slow():
        for batch in itertools.islice(itertools.cycle([torch.ones(4, 2)]), 120):
            time.sleep(0.005)
            yield batch

    seen = []
    fast = fl.compile(STEP, steps=50, backend="aot_eager")
    _, history = fl.fit(
        fast,
        state(),
        lambda epoch: slow(),
        epochs=1,
        callbacks=[
            fl.every(0.1, fl.validate(loss, data()), unit="second"),
            fl.every(0.15, fl.effect(lambda s, m: seen.append(s.params.norm())), unit="second"),
        ],
    )
    assert len(history["val/loss"]) >= 4 and len(seen) >= 3
    assert len(set(history.steps("val/loss")) - {50, 100, 120}) >= 2


def test_the_last_weights_are_averaged_and_first_those_at_the_end_of_the_epoch_before(tmp_path):
    """Defect 2: its SWA updates at the start of epochs, and never sees the last one's weights."""
    epoch, weights = len(data()), []
    average = fl.ema(fl.schedules.uniform(start=2 * epoch, every=epoch), name="swa")
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), average)
    keep = fl.every(1, fl.effect(lambda s, m: weights.append(s.params["weight"])), unit="epoch")
    first = step.init(lambda: nn.Linear(2, 1), seed=0)
    saving = fl.checkpoint(tmp_path, every=1, unit="step")
    after, _ = fl.fit(step, first, data(), epochs=5, callbacks=[keep, saving])
    mean = torch.stack(weights[1:]).mean(0)  # Lightning: of weights[1:4], with swa_epoch_start=2
    torch.testing.assert_close(after["swa"]["weight"], mean)


def test_an_average_before_its_first_update_is_the_live_weights():
    """Defect 6: its weights are swapped for the initial ones before any update (#21724)."""
    late = fl.schedules.uniform(start=15)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(late))
    checks = [
        fl.every(5, fl.validate(loss, data(), name=name, params=params), first=True)
        for name, params in (("live", None), ("averaged", "ema"))
    ]
    first = step.init(lambda: nn.Linear(2, 1), seed=0)
    _, history = fl.fit(step, first, data(), steps=20, callbacks=checks)
    live, averaged = history["live/loss"], history["averaged/loss"]
    assert history.steps("live/loss") == [0, 5, 10, 15, 20]
    assert averaged[:4] == live[:4] and averaged[4] != live[4]
    assert len(set(live)) == 5


def test_an_average_resumes_where_it_was(tmp_path):
    """Defect 6: when it was updated last is not saved, so that a resumed one is updated again."""
    average = fl.ema(fl.schedules.uniform(start=4, every=3))
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), average)
    testing.check_resumes(step, step.init(lambda: nn.Linear(2, 1), seed=0), data(), steps=11)


def test_what_a_spike_is_measured_by_survives_a_resume(tmp_path):
    """Defect 7: its SpikeDetection cannot be loaded."""
    x = [1 + 0.01 * torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    x[6] = x[6] * 100
    rule = fl.rules.spike("loss", sigmas=6, warmup=5)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.001)), fl.guard(rule))
    first = step.init(lambda: nn.Linear(2, 1), seed=0)
    whole, _ = fl.fit(step, first, x, steps=9)
    saving = fl.checkpoint(tmp_path)
    fl.fit(step, first, x, steps=6, callbacks=[saving])  # the next one is the spike
    saw = []
    seen = fl.effect(lambda s, m: saw.append(int(float(m["guard"]))))
    resumed, _ = fl.fit(step, first, x, steps=9, callbacks=[saving, seen], resume=tmp_path)
    assert saw == [1, 0, 0] and fl.tree_equal(resumed, whole)
