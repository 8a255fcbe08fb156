"""Rhythms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


def loss(model, x):
    return model(x).square().mean(), {"most": fl.Max(x.max())}


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(1e-3)))


def data():
    return fl.Batches(torch.arange(20.0).reshape(10, 2), batch_size=4, shuffle=False)


def state():
    return STEP.init(nn.Linear(2, 1))


def collect(callbacks, **limits):
    return [metrics for _, metrics in fl.run(STEP, state(), data(), callbacks=callbacks, **limits)]


@pytest.mark.lightning("T17")
def test_a_callback_gets_the_merge_since_it_last_ran():
    seen = []

    def note(s, metrics):
        seen.append(
            (float(metrics["loss"].weight), float(metrics["most"]), float(metrics["sgd.lr"]))
        )
        return s, {**metrics, "noted": fl.Sum(1.0)}

    steps = collect([fl.every(2, note)], steps=7)
    assert seen == [(8, 15, 1e-3), (6, 19, 1e-3), (6, 19, 1e-3)]
    assert ["noted" in m for m in steps] == [False, True, False, True, False, True, False]
    # The step's own metrics stay those of the step.
    assert [float(m["loss"].weight) for m in steps] == [4, 4, 2, 4, 4, 2, 4]


@pytest.mark.lightning("T18")
def test_epochs():
    seen = []

    def note(s, metrics):
        seen.append((int(s.cursor[0]), float(metrics["loss"].weight)))
        return s, metrics

    collect([fl.every(2, note, unit="epoch")], epochs=5)
    assert seen == [(2, 20), (4, 20)]


@pytest.mark.lightning("H9")
def test_the_window_survives_a_resume():
    seen = []

    def note(s, metrics):
        seen.append(float(metrics["loss"].weight))
        return s, metrics

    callbacks = [fl.every(5, note)]
    for s, _ in fl.run(STEP, state(), data(), steps=3, callbacks=callbacks):  # noqa: B007
        pass
    for _ in fl.run(STEP, s, data(), steps=2, callbacks=callbacks):
        pass
    assert seen == [18]


def test_effects_have_rhythms_too():
    seen = []
    note = fl.effect(
        lambda s, metrics: seen.append((int(s.cursor[2]), float(metrics["loss"].weight)))
    )
    collect([fl.every(3, note)], steps=6)
    assert seen == [(3, 10), (6, 10)]


def test_a_callback_inside_is_stopped_by_its_own_metric():
    callbacks = [fl.every(2, fl.early_stopping("loss", patience=1, min_delta=1e9))]
    assert len(collect(callbacks, steps=20)) == 4


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        fl.every(0, lambda s, m: (s, m))
    with pytest.raises(ValueError, match='"step", "epoch" or "second"'):
        fl.every(1, lambda s, m: (s, m), unit="batch")
    with pytest.raises(TypeError, match="stage of the pipeline"):
        fl.every(1, STEP)


def test_an_effect_gets_what_is_left_at_the_end():
    seen = []
    note = fl.effect(lambda s, metrics: seen.append(float(metrics["loss"].weight)))
    collect([fl.every(3, note)], steps=4)
    assert seen == [10, 4]


def test_a_name_that_would_not_last_is_refused():
    class Callable_:
        def __call__(self, s, metrics):
            return s, metrics

    with pytest.raises(ValueError, match="no name that stays the same"):
        fl.every(3, Callable_())
    assert fl.every(3, Callable_(), name="mine").name == "mine"


def test_memory_of_a_metric_that_is_gone_is_carried_along():
    callback = fl.every(5, lambda s, m: (s, m), name="w")
    s, metrics = STEP(state(), torch.ones(4, 2))
    s = callback.init(s, metrics)
    old = {**s["w"], "gone": {"total": torch.ones(()), "weight": torch.ones(())}}
    after, _ = callback(s.put("w", old), metrics)
    assert after["w"]["gone"] is old["gone"]


@fl.tree
class Median(fl.metrics.Metric):
    """A metric that keeps all scores."""

    scores: tuple[torch.Tensor, ...]

    def merge(self, other):
        return Median((*self.scores, *other.scores))

    def value(self):
        return torch.cat([s.reshape(-1) for s in self.scores]).double().median()


def scored(model, batch):
    out = model(batch)
    return out.square().mean(), {"median": Median((out.detach(),))}


def test_a_metric_that_grows_is_merged_for_an_effect_and_refused_in_a_callback():
    step = fl.pipe(scored, fl.grad, fl.update(fl.optim.sgd(0.0)))
    state, told = step.init(torch.nn.Linear(2, 1), seed=0), []
    x = torch.randn(12, 2)
    data = fl.Batches(x, 4, shuffle=False)
    effect = fl.every(1, fl.effect(lambda s, m: told.append(float(m["median"]))), unit="epoch")
    fl.fit(step, state, data, epochs=1, callbacks=[effect])
    assert told == [float(fl.to_module(state)(x).detach().median())]

    def reading(state, metrics):
        return state, {**metrics, "seen": fl.Last(float(metrics["median"]))}

    def other(state, metrics):
        return state, {**metrics, "seen": fl.Last(float(metrics["loss"]))}

    callback = fl.every(1, reading, unit="epoch", name="reading")
    with pytest.raises(TypeError, match=r"'median' grows when it is merged.*fl\.effect\(f\)"):
        fl.fit(step, state, data, epochs=1, callbacks=[callback])
    both = [fl.every(1, other, unit="epoch", name="other")]
    _, history = fl.fit(step, state, data, epochs=2, callbacks=both)
    assert history["seen"] == history["loss"] and "median" in history


def test_a_metric_that_grows_is_given_where_there_was_one_report():
    step = fl.pipe(scored, fl.grad, fl.update(fl.optim.sgd(0.0)))
    state, seen = step.init(torch.nn.Linear(2, 1)), []
    data = fl.Batches(torch.randn(12, 2), 4, shuffle=False)

    def reading(state, metrics):
        seen.append(float(metrics["val/median"]))
        return state, metrics

    validation = fl.every(2, fl.validate(scored, data))
    stopping = fl.every(2, fl.early_stopping("val/median", patience=9))
    callbacks = [validation, fl.every(4, reading, name="reading"), stopping]
    with pytest.raises(TypeError, match="'val/median' grows"):  # two reports in four steps
        fl.fit(step, state, data, steps=4, callbacks=callbacks)
    callbacks[1] = fl.every(2, reading, name="reading")
    _, history = fl.fit(step, state, data, steps=6, callbacks=callbacks)
    assert seen == history["val/median"] and len(seen) == 3


def test_a_callback_is_not_troubled_by_text():
    step = fl.pipe(
        lambda m, x: (m(x).square().mean(), {"phase": fl.Last("warm")}),
        fl.grad,
        fl.update(fl.optim.sgd(0.0)),
    )
    seen = []

    def reading(state, metrics):
        seen.append(metrics["phase"].value())
        return state, metrics

    callbacks = [fl.every(2, reading, name="reading")]
    data = fl.Batches(torch.ones(4, 2), 2)
    fl.fit(step, step.init(torch.nn.Linear(2, 1)), data, steps=4, callbacks=callbacks)
    assert seen == ["warm", "warm"]


@pytest.mark.filterwarnings("ignore:Closing the effect history failed")
def test_a_metric_that_changes_its_kind_is_refused():
    kinds = iter([fl.Sum(1.0), fl.Mean(1.0, 1)])
    callbacks = [
        lambda s, m: (s, {**m, "odd": next(kinds)}),
        fl.every(2, lambda s, m: (s, m), name="e"),
    ]
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.0)))
    with pytest.raises(TypeError, match=r"'odd' is Sum.* and Mean.*Report it as one kind"):
        fl.fit(
            step,
            step.init(torch.nn.Linear(2, 1)),
            fl.Batches(torch.ones(4, 2), 2),
            steps=2,
            callbacks=callbacks,
        )
