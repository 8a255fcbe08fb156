"""Metrics are monoids."""

from __future__ import annotations

import math

import pytest
import torch

import fnloop as fl

EXAMPLES = {
    "mean": [
        fl.Mean(torch.tensor(3.0), 2),
        fl.Mean(torch.tensor(1.0), 1),
        fl.Mean(torch.tensor(-4.0), 5),
    ],
    "vector mean": [fl.Mean(torch.ones(3) * i, torch.tensor(float(i))) for i in (1, 2, 3)],
    "sum": [fl.Sum(1.0), fl.Sum(2.0), fl.Sum(4.0)],
    "min": [fl.Min(torch.tensor(2.0)), fl.Min(torch.tensor(-1.0)), fl.Min(torch.tensor(5.0))],
    "max": [fl.Max(1.0), fl.Max(7.0), fl.Max(2.0)],
    "last": [fl.Last(0.1), fl.Last(0.2), fl.Last(0.3)],
}


def close(a, b):
    return torch.allclose(torch.as_tensor(a.value()).double(), torch.as_tensor(b.value()).double())


@pytest.mark.parametrize("parts", EXAMPLES.values(), ids=EXAMPLES)
def test_merging_is_associative_and_has_an_identity(parts):
    a, b, c = parts
    assert close(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert close(a.merge(a.empty()), a) and close(a.empty().merge(a), a)


def test_ten_thousand_small_losses_are_not_rounded_away():
    part = fl.Mean(torch.tensor(0.1), 1)
    merged = fl.merge({"loss": part} for _ in range(100_000))
    assert float(merged["loss"].total) == pytest.approx(
        100_000 * float(torch.tensor(0.1)), rel=1e-12
    )


def test_extremes_show_nan():
    assert math.isnan(float(fl.Max(1.0).merge(fl.Max(math.nan))))
    assert math.isnan(float(fl.Min(torch.tensor(math.nan)).merge(fl.Min(torch.tensor(1.0)))))


def test_merge_is_over_the_union_of_names():
    merged = fl.merge([{"a": fl.Sum(1.0)}, {"b": fl.Sum(2.0)}, {"a": fl.Sum(3.0)}])
    assert fl.numbers(merged) == {"a": 4, "b": 2}


def test_a_stop_that_was_asked_for_stays():
    no, yes = fl.stop(False, "no"), fl.stop(torch.tensor(True), "yes")
    assert no.merge(yes).reason == yes.merge(no).reason == "yes"
    assert fl.numbers({"stop": yes}) == {}


def test_a_metric_of_ones_own():
    @fl.tree
    class Range(fl.Metric):
        low: torch.Tensor
        high: torch.Tensor

        def merge(self, other):
            return Range(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

        def value(self):
            return {"low": self.low, "high": self.high}

    a, b = Range(torch.tensor(1.0), torch.tensor(2.0)), Range(torch.tensor(0.0), torch.tensor(1.0))
    assert fl.numbers({"range": a.merge(b)}) == {"range/low": 0, "range/high": 2}


def test_nothing_to_average():
    assert math.isnan(float(fl.Mean(0.0, 0)))
