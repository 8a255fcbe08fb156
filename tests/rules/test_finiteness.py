from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.rules.finiteness import nonfinite

STATE = fl.grad(lambda m, x: m(x).mean()).init(nn.Linear(1, 1))
NAN, INF = math.nan, math.inf


def verdicts(rule, values, skips=()):
    state, found = rule.init(STATE, {}), []
    for i, value in enumerate(values):
        metrics = {"loss": fl.Mean(value, 1.0), "skipped": fl.Sum(float(i in skips))}
        state, told = rule(state, metrics)
        assert told["loss"] is metrics["loss"]
        found.append(int(told["bad"].value()))
    return found


@pytest.mark.parametrize("make", [float, lambda value: torch.tensor(value)])
def test_nan_and_both_infinities_are_bad(make):
    values = [make(v) for v in (1.0, NAN, INF, -INF, 0.0, 3e38)]
    assert verdicts(nonfinite(), values) == [0, 1, 1, 1, 0, 0]


def test_a_skipped_step_is_bad_whatever_its_blank_metric_says():
    assert verdicts(nonfinite(), [0.0, 0.0, 0.0], skips=(1,)) == [0, 1, 0]


def test_patience_counts_in_a_row():
    values = [NAN, NAN, 1.0, NAN, NAN, NAN, NAN, 1.0]
    assert verdicts(nonfinite(patience=3), values) == [0, 0, 0, 0, 0, 1, 1, 0]
    assert verdicts(nonfinite(patience=3), [1.0] * 4, skips=(1, 2, 3)) == [0, 0, 0, 1]


def test_it_remembers_only_what_patience_needs():
    assert nonfinite().init(STATE, {}) is STATE
    assert set(nonfinite(patience=2).init(STATE, {})["nonfinite"]) == {"streak"}


def test_any_metric_can_be_watched_and_an_absent_one_is_no_verdict():
    state, told = nonfinite("norm")(STATE, {"norm": fl.Last(INF)})
    assert told["bad"].value() and state is STATE
    assert nonfinite("norm")(STATE, {"loss": fl.Last(INF)}) == (STATE, {"loss": fl.Last(INF)})
    assert nonfinite("norm").needs() == ("norm",)


def test_under_vmap_each_has_its_own_verdict():
    rule = nonfinite(patience=2)

    def two(values):
        state = rule.init(STATE, {})
        state, _ = rule(state, {"loss": fl.Last(values[0])})
        return rule(state, {"loss": fl.Last(values[1])})[1]["bad"].value()

    values = torch.tensor([[NAN, NAN], [NAN, 1.0], [1.0, NAN]])
    assert torch.func.vmap(two)(values).tolist() == [1, 0, 0]


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        nonfinite(patience=0)
