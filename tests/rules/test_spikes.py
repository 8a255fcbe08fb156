"""The running statistics against weighted means and variances by NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.rules.spikes import spike

STATE = fl.grad(lambda m, x: m(x).mean()).init(nn.Linear(1, 1))
NAN, INF = math.nan, math.inf


def follow(rule, values, skips=()):
    """The verdicts, and the memory after each value."""
    state, found, memories = rule.init(STATE, {}), [], []
    for i, value in enumerate(values):
        metrics = {"loss": fl.Mean(value, 1.0), "skipped": fl.Sum(float(i in skips))}
        state, told = rule(state, metrics)
        found.append(int(told["bad"].value()))
        memories.append(state["spike"])
    return found, memories


def verdicts(*args, **kwargs):
    return follow(*args, **kwargs)[0]


def test_mean_and_variance_are_those_of_weighted_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, 60)
    _, memories = follow(spike(window=20, warmup=100), values.tolist())
    for n in (1, 2, 7, 60):
        seen, weights = values[:n], (1 - 1 / 20) ** np.arange(n - 1, -1, -1)
        mean = np.average(seen, weights=weights)
        variance = np.average((seen - mean) ** 2, weights=weights)
        memory = memories[n - 1]
        assert memory["mean"].dtype == memory["variance"].dtype == torch.float64
        np.testing.assert_allclose(float(memory["mean"]), mean, rtol=1e-12)
        np.testing.assert_allclose(float(memory["variance"]), variance, rtol=1e-12, atol=1e-15)
        assert int(memory["count"]) == n


@pytest.mark.lightning("C18")
def test_the_verdict_is_that_of_the_z_score():
    values = np.random.default_rng(1).normal(0.0, 1.0, 200)
    values[[50, 120]] += 9
    accepted, expected = [], []
    for value in values:
        weights = (1 - 1 / 30) ** np.arange(len(accepted) - 1, -1, -1)
        bad = False
        if len(accepted) >= 10:
            mean = np.average(accepted, weights=weights)
            std = np.sqrt(np.average((np.array(accepted) - mean) ** 2, weights=weights))
            bad = (value - mean) / std > 2.5
        expected.append(int(bad))
        accepted += [] if bad else [value]
    assert verdicts(spike(sigmas=2.5, window=30, warmup=10), values.tolist()) == expected
    assert 2 < sum(expected) < 20 and expected[50] and expected[120]


def test_it_is_one_sided():
    values = [1.0, 1.1, 0.9, 1.0, -50.0]
    assert verdicts(spike(warmup=4), values) == [0] * 5
    assert verdicts(spike(warmup=4), [*values[:4], 52.0]) == [0, 0, 0, 0, 1]


def test_no_verdict_before_the_warmup_is_over():
    values = [1.0, 1.1, 99.0, 1.0]
    assert verdicts(spike(warmup=3), values) == [0, 0, 0, 0]
    assert verdicts(spike(warmup=2), values) == [0, 0, 1, 0]


def test_a_bad_value_does_not_enter_the_statistics():
    found, memories = follow(spike(warmup=4), [1.0, 1.1, 0.9, 1.0, 99.0, 1.0])
    assert found == [0, 0, 0, 0, 1, 0]
    before, after = memories[3], memories[4]
    assert int(after.pop("streak")) == 1 and int(before.pop("streak")) == 0
    assert fl.tree_equal(before, after)
    assert int(memories[5]["streak"]) == 0


def test_what_is_not_finite_is_bad_at_once_and_leaves_no_trace():
    found, memories = follow(spike(warmup=3, patience=2), [1.0, NAN, INF, -INF, NAN, 1.1])
    assert found == [0, 1, 1, 1, 1, 0]
    assert fl.tree_equal(memories[0], memories[4])


def test_another_level_is_accepted_after_patience_bad_ones():
    values = [1.0, 1.1, 0.9, 1.0, *[50.0] * 3, 50.0, 51.0, 49.0, 50.0, 99.0]
    found, memories = follow(spike(warmup=4, patience=3), values)
    assert found == [0] * 4 + [1] * 3 + [0] * 4 + [1]
    assert all(float(value) == 0 for value in memories[6].values())
    assert float(memories[7]["mean"]) == 50.0


def test_patience_counts_in_a_row():
    values = [1.0, 1.1, 0.9, 1.0, 50.0, 1.0, 50.0, 1.0, 50.0, 1.0]
    assert sum(verdicts(spike(warmup=4, patience=2), values)) == 3


def test_a_skipped_step_is_not_judged():
    found, memories = follow(spike(warmup=2), [1.0, 1.1, 99.0, NAN, 1.0], skips=(2, 3))
    assert found == [0] * 5
    assert fl.tree_equal(memories[1], memories[3])


def test_looking_and_selecting_give_the_same_bits():
    rule = spike(sigmas=1.0, window=7, warmup=3, patience=2)
    values = np.random.default_rng(2).normal(1.0, 1.0, 40)
    values[[9, 20, 21, 22, 30]] = [NAN, 40, 41, 42, INF]
    expected, memories = follow(rule, values.tolist(), skips=(5,))

    def one(memory, value, skip):
        metrics = {"loss": fl.Mean(value, 1.0), "skipped": fl.Sum(skip)}
        state, told = rule(STATE.put("spike", memory), metrics)
        return state["spike"], told["bad"].value()

    member = fl.tree_map(lambda t: torch.stack([t, t]), rule.init(STATE, {})["spike"])
    many = torch.func.vmap(one)
    for i, value in enumerate(values):
        inputs = torch.tensor([value, value], dtype=torch.float64)
        member, bad = many(member, inputs, torch.full((2,), float(i == 5)))
        assert bad.tolist() == [expected[i]] * 2
        assert fl.tree_equal(fl.tree_map(lambda t: t[1], member), memories[i])
    assert sum(expected) > 6


def test_its_settings_may_be_tensors():
    values = [1.0, 1.1, 0.9, 1.0, 1.5, 1.0]
    loose, tight = torch.tensor(100.0), torch.tensor(2.0)
    assert sum(verdicts(spike(sigmas=loose, warmup=4), values)) == 0
    assert verdicts(spike(sigmas=tight, warmup=4), values) == verdicts(
        spike(sigmas=2.0, warmup=4), values
    )


def test_a_metric_of_several_numbers_is_an_error():
    rule = spike("loss")
    with pytest.raises(ValueError, match=r"spike\('loss'\) monitors one number, .*: f32\[3\]"):
        rule(rule.init(STATE, {}), {"loss": fl.Last(torch.ones(3))})


@pytest.mark.parametrize(
    "options", [{"sigmas": 0.0}, {"sigmas": NAN}, {"window": 1}, {"warmup": 1}, {"patience": 0}]
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        spike("loss", **options)
