from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.merging import find, numbers
from fnloop.values.monitored import one_number


@pytest.mark.parametrize("name", ["val/accuracy", "acc", "val/report/f1", "AUROC", "val/acc_top5"])
def test_the_smallest_of_a_metric_that_should_be_large_is_warned_of(name, tmp_path):
    for make in (fl.early_stopping, lambda name, **o: fl.checkpoint(tmp_path, monitor=name, **o)):
        with pytest.warns(UserWarning, match='mode="max"'):
            make(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(name, mode="max")


@pytest.mark.parametrize("name", ["val/loss", "accuracy_error", "val/map", "accident"])
def test_other_names_are_not(name):
    fl.early_stopping(name)


def test_a_mode_that_is_none():
    with pytest.raises(ValueError, match='early_stopping takes mode="min" or mode="max", got'):
        fl.early_stopping("val/loss", mode="larger")


def recalls(n):
    return torch.linspace(0, 1, n)


@pytest.mark.parametrize(
    ("value", "members", "names"),
    [
        ({"a": 1.0, "b": {"c": torch.tensor(2.0)}}, None, "m/a, m/b/c."),
        ([0.5, 0.25], None, r"m\[0\], m\[1\]."),
        (recalls(3), None, r"m\[0\], m\[1\], m\[2\]."),
        (recalls(3).numpy(), None, r"m\[0\], m\[1\], m\[2\]."),
        (recalls(20), None, r"m\[6\], m\[7\], ..."),
        ({"a": recalls(3), "b": recalls(2)}, 3, r"m/a, m/b\[0\], m/b\[1\]."),
    ],
)
def test_what_is_not_one_number_is_refused_with_the_names_inside(value, members, names):
    with pytest.raises(ValueError, match=f"x monitors one number, .*'m'.*one of these: .*{names}"):
        one_number(value, "m", "x", members)
    found = {"m": fl.Last(value)}
    for name in numbers({"m": fl.Last(value)}) if members is None else ("m/a",):
        assert one_number(find(found, name), name, "x", members) is not None


@pytest.mark.parametrize("value", [torch.eye(2), "text", [], {}])
def test_where_there_are_no_names_a_metric_of_its_own_is_the_remedy(value):
    with pytest.raises(ValueError, match="as a metric of its own"):
        one_number(value, "m", "x")


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), torch.tensor(2.0), torch.ones(1, 1)])
def test_one_number(value):
    found = one_number(value, "m", "x")
    assert float(found) == float(value) and getattr(found, "ndim", 0) == 0


def test_one_number_of_each_member():
    assert torch.equal(one_number(recalls(3), "m", "x", 3), recalls(3))
    assert one_number(recalls(1), "m", "x", 1).shape == (1,)
    with pytest.raises(ValueError, match="monitors one number"):
        one_number(recalls(3), "m", "x", 2)


def reports(model, x):
    found = model(x).detach().squeeze(1)
    return {"c": fl.metrics.confusion(found, (found > 0).long()), "outputs": fl.Last(found)}


STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
DATA = fl.Batches(torch.linspace(-1, 1, 8).reshape(4, 2), 2)

MONITORING = {
    "early_stopping": lambda name, folder: fl.early_stopping(name, mode="max"),
    "every": lambda name, folder: fl.every(2, fl.early_stopping(name, mode="max")),
    "reduce_on_plateau": lambda name, folder: fl.reduce_on_plateau(name, mode="max"),
    "keep_best": lambda name, folder: fl.tuning.keep_best(name, mode="max"),
    "checkpoint": lambda name, folder: fl.checkpoint(folder, monitor=name, mode="max"),
}


@pytest.mark.parametrize("kind", MONITORING)
@pytest.mark.parametrize("members", [None, 3])
def test_a_callback_refuses_a_metric_of_several_values_at_the_start(kind, members, tmp_path):
    step = STEP if members is None else fl.ensemble(STEP, members)
    state = step.init(lambda: nn.Linear(2, 1), seed=0)

    def fit(name):
        validate = fl.every(1, fl.validate(reports, DATA), unit="epoch")
        callbacks = [validate, MONITORING[kind](name, tmp_path)]
        return fl.fit(step, state, DATA, epochs=2, callbacks=callbacks)

    with pytest.raises(ValueError, match="one of these: val/c/accuracy, val/c/precision") as raised:
        fit("val/c")
    assert "after 0 batches" in raised.value.__notes__[-1]
    with pytest.raises(ValueError, match=r"monitors one number, .*'val/outputs'"):
        fit("val/outputs")
    fit("val/c/f1")


def test_what_is_found_late_loses_nothing(tmp_path):
    def late(state, metrics):  # what it adds is not known in advance
        if int(state.cursor[2]) < 3:
            return state, metrics
        return state, {**metrics, "c": fl.Last(torch.ones(2))}

    state = STEP.init(nn.Linear(2, 1))
    for kind in MONITORING:
        saving = [fl.checkpoint(tmp_path / kind)] if kind != "checkpoint" else []
        callbacks = [late, MONITORING[kind]("c", tmp_path / kind), *saving]
        if kind == "every":
            callbacks[1] = fl.every(3, fl.early_stopping("c"))
        with pytest.raises(ValueError, match=r"one of these: c\[0\], c\[1\]"):
            fl.fit(STEP, state, DATA, steps=9, callbacks=callbacks)
        saved = fl.load(fl.latest(tmp_path / kind), like=state)
        assert int(saved.cursor[2]) == (3 if kind == "checkpoint" else 2)
