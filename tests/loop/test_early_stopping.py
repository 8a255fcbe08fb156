"""The semantics of PyTorch Lightning's EarlyStopping, with its test vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fnloop as fl

STATE = fl.grad(lambda m, x: m(x).mean()).init(nn.Linear(1, 1))
NAN, INF = math.nan, math.inf


def stops_at(values, **options):
    """The 1-based check at which the run stops, or None; and the reason."""
    callback = fl.early_stopping("m", **options)
    state = callback.init(STATE, {"m": fl.Last(values[0])})
    for i, value in enumerate(values, 1):
        state, metrics = callback(state, {"m": fl.Last(value)})
        if metrics["early_stopping"]:
            return i, metrics["early_stopping"].reason
    return None, ""


@pytest.mark.lightning("C5", "V1")
@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        # An improvement must be larger than min_delta (binary-exact numbers).
        ([1.0, 0.875, 0.75], {"patience": 2, "min_delta": 0.25}, 3),
        ([1.0, 0.875, 0.5, 0.5, 0.375], {"patience": 2, "min_delta": 0.25}, 5),
        ([1.0, 1.0], {"patience": 1}, 2),
        ([1.0, 1.0], {"patience": 0}, 2),
        ([1.0, 0.9, 0.8, 0.7], {"patience": 1}, None),
        # Any improvement starts the wait anew.
        ([1.0, 1.1, 0.9, 1.0, 0.8, 0.9, 0.9], {"patience": 2}, 7),
        # Without the check, nan is no improvement.
        ([1.0, NAN, NAN], {"patience": 2, "check_finite": False}, 3),
        ([1.0, NAN], {"patience": 9}, 2),
        ([1.0, -INF], {"patience": 9}, 2),
        # Thresholds are strict.
        ([0.5, 0.25, 0.125], {"patience": 9, "stopping_threshold": 0.25}, 3),
        ([0.5, 4.0, 4.5], {"patience": 9, "divergence_threshold": 4.0}, 3),
        ([0.5, 0.75, 0.875], {"patience": 9, "mode": "max", "stopping_threshold": 0.75}, 3),
        ([0.5, 0.25, 0.125], {"patience": 9, "mode": "max", "divergence_threshold": 0.25}, 3),
        ([0.5, 0.75, 0.75, 0.75], {"patience": 2, "mode": "max"}, 4),
        ([0.5, 0.625, 0.75], {"patience": 2, "mode": "max", "min_delta": 0.25}, 3),
    ],
)
def test_vectors(values, options, expected):
    assert stops_at(values, **options)[0] == expected


@pytest.mark.lightning("V1")
def test_rules_before_the_last_do_not_touch_the_memory():
    callback = fl.early_stopping("m", patience=3)
    state = callback.init(STATE, {"m": fl.Last(1.0)})
    state, _ = callback(state, {"m": fl.Last(1.0)})
    after, metrics = callback(state, {"m": fl.Last(NAN)})
    assert (
        metrics["early_stopping"]
        and after["early_stopping"]["waited"] == state["early_stopping"]["waited"]
    )


def test_reasons():
    assert stops_at([1.0, NAN])[1] == "m is nan, which is not finite"
    assert (
        stops_at([1.0, 0.1], stopping_threshold=0.5)[1] == "m is 0.1, better than the threshold 0.5"
    )
    assert stops_at([1.0, 9.0], divergence_threshold=5)[1] == "m is 9, worse than the threshold 5"
    assert stops_at([1.0, 2.0], patience=1)[1] == "m has not improved on 1 for 1 check"


@pytest.mark.lightning("V1")
def test_an_absent_metric_is_no_check():
    callback = fl.early_stopping("m", patience=1)
    state = callback.init(STATE, {"m": fl.Last(1.0)})
    state, _ = callback(state, {"m": fl.Last(1.0)})
    after, metrics = callback(state, {"other": fl.Last(1.0)})
    assert after is state and "early_stopping" not in metrics


def test_it_can_be_vmapped():
    callback = fl.early_stopping("m", patience=2)
    state = callback.init(STATE, {"m": fl.Last(torch.tensor(1.0))})

    def two(values):
        s, _ = callback(state, {"m": fl.Last(values[0])})
        s, _ = callback(s, {"m": fl.Last(values[1])})
        s, metrics = callback(s, {"m": fl.Last(values[2])})
        return metrics["early_stopping"].when

    values = torch.tensor([[1.0, 2.0, 2.0], [1.0, 0.5, 0.6], [1.0, 0.5, math.nan]])
    assert torch.func.vmap(two)(values).tolist() == [True, False, True]


@pytest.mark.parametrize("options", [{"mode": "mim"}, {"patience": -1}, {"min_delta": -0.1}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="early_stopping"):
        fl.early_stopping("m", **options)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"stopping_threshold": 0.5}, [1.0, 0.4]),
        ({"divergence_threshold": 2.0}, [1.0, 3.0]),
        ({}, [1.0, float("nan")]),
        ({"patience": 1}, [1.0, 1.0]),
    ],
)
def test_a_run_that_any_rule_has_ended_stays_ended(options, values):
    callback = fl.early_stopping("val/loss", **options)
    step = fl.grad(lambda model, batch: model(batch).mean())
    state = step.init(torch.nn.Linear(1, 1))
    state = callback.init(state, {"val/loss": fl.Last(1.0)})
    assert callback.stopped(state) is None
    for value in values:
        state, metrics = callback(state, {"val/loss": fl.Last(value)})
    assert callback.stopped(state) == metrics["early_stopping"].reason
    state, _ = callback(state, {"val/loss": fl.Last(0.9)})
    assert callback.stopped(state) is None
