"""Who takes the state of whom, against the rules as the paper states them."""

from __future__ import annotations

import math

import pytest
import torch

from fnloop.loop.selection import tournament, truncation

N, TRIALS = 10, 4000


def uniform(n=N):
    return torch.rand(TRIALS, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def everybody(n=N):
    return torch.ones(n, dtype=torch.bool)


@pytest.fixture
def scores():
    return torch.randperm(N, generator=torch.Generator().manual_seed(1)).double()


def shares(taken):
    """How often each member was taken from."""
    return torch.bincount(torch.cat(taken), minlength=N) / sum(map(len, taken))


def test_the_worst_take_from_the_best_with_equal_chances(scores):
    order = scores.argsort()
    for fraction, k in ((0.2, 2), (0.3, 3), (0.01, 1), (0.5, 5)):
        worst, best = order[:k], order[-k:]
        others = order[k:]
        found = [truncation(scores, everybody(), draws, fraction) for draws in uniform()]
        assert all(torch.equal(parents[others], others) for parents in found)
        taken = shares([parents[worst] for parents in found])
        assert taken[best].tolist() == pytest.approx([1 / k] * k, abs=0.03)
        assert taken.sum() - taken[best].sum() == 0


def test_a_tournament_is_against_any_other_with_equal_chances(scores):
    found = torch.stack([tournament(scores, everybody(), draws) for draws in uniform()])
    for i in range(N):
        better = (scores > scores[i]).nonzero().flatten().tolist()
        counts = torch.bincount(found[:, i], minlength=N) / TRIALS
        for other in range(N):
            expected = 1 / (N - 1) if other in better else 0.0
            expected = 1 - len(better) / (N - 1) if other == i else expected
            assert float(counts[other]) == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("rule", [lambda *a: truncation(*a, 0.4), tournament])
def test_frozen_and_diverged_members(rule, scores):
    active = everybody()
    active[scores.argmax()] = active[scores.argmin()] = False
    some = scores.clone()
    lost = int(scores.argsort()[5])
    some[lost] = math.nan
    takes = 0
    for draws in uniform()[:200]:
        parents = rule(some, active, draws)
        moved = (parents != torch.arange(N)).nonzero().flatten()
        assert active[moved].all() and active[parents[moved]].all()
        assert lost not in parents[moved]
        takes += lost in moved
    assert takes > 150


@pytest.mark.parametrize("rule", [lambda *a: truncation(*a, 0.4), tournament])
@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, -math.inf])
def test_of_equal_ones_each_keeps_its_own(rule, value):
    same = torch.full((4,), value, dtype=torch.float64)
    for draws in uniform(4)[:50]:
        assert rule(same, everybody(4), draws).tolist() == [0, 1, 2, 3]
    nobody = torch.zeros(4, dtype=torch.bool)
    assert rule(torch.arange(4.0), nobody, uniform(4)[0]).tolist() == [0, 1, 2, 3]
    nobody[2] = True
    assert rule(torch.arange(4.0), nobody, uniform(4)[0]).tolist() == [0, 1, 2, 3]
