"""Metrics of populations: each member has the value of its own run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.member_metrics import OfMembers

G = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=G)
Y, TARGETS = torch.randint(0, 3, (30,), generator=G), torch.randn(30, 3, generator=G)


@fl.tree
class Spread(fl.metrics.Metric):
    """The distance between the largest and the smallest of some sums."""

    sums: torch.Tensor

    def merge(self, other):
        return Spread(self.sums + other.sums)

    def value(self):
        return self.sums.max() - self.sums.min()


@fl.tree
class Worst(fl.Mean):
    """A mean whose value is not taken element by element, though that of its base class is."""

    def value(self):
        return super().value().max()


def loss(model, batch):
    x, y, targets = batch
    scores = model(x)
    errors = (scores - targets).square().detach().sum(0)
    return nn.functional.cross_entropy(scores, y), {
        "digits": fl.metrics.confusion(scores, y),
        "f1": fl.metrics.f1(scores, y),
        "fit": fl.metrics.r2(scores, targets),
        "errors": fl.Mean(errors, len(x)),
        "spread": Spread(errors),
        "worst": Worst(errors, torch.full_like(errors, len(x))),
    }


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def network():
    return nn.Linear(4, 3)


def batches(size):
    return list(zip(X.split(size), Y.split(size), TARGETS.split(size), strict=True))


def flat(value):
    return torch.cat([v.double().reshape(-1) for v in fl.tree_leaves(value)])


@pytest.mark.parametrize("n", [2, 3])  # as many members as classes, too
@pytest.mark.parametrize("how", ["vmap", "loop", "chunk", "compiled", "own"])
def test_each_member_has_the_values_of_its_run(n, how):
    options = {"loop": {"mode": "loop"}, "chunk": {"chunk": 2}, "own": {"batches": "own"}}
    many = fl.ensemble(STEP, n, **options.get(how, {}))
    many = fl.compile(many, backend="aot_eager") if how == "compiled" else many
    states, found = many.init(network, seed=0), []
    alone = [(STEP.init(network, seed=i), []) for i in range(n)]
    for batch in batches(15):
        given = [tuple(t[i : i + 9] for t in batch) if how == "own" else batch for i in range(n)]
        states, metrics = many(states, given if how == "own" else batch)
        found.append(metrics)
        for i, (state, own) in enumerate(alone):
            after, metrics = STEP(state, given[i])
            alone[i] = (after, [*own, metrics])
    merged = fl.metrics.merge(found)
    for i, (_, own) in enumerate(alone):
        for name, metric in fl.metrics.merge(own).items():
            value = fl.tree_map(lambda leaf, i=i: leaf[i], merged[name].value())
            torch.testing.assert_close(flat(value), flat(metric.value()), rtol=1e-5, atol=1e-6)


def test_an_evaluation_has_them_too():
    many = fl.ensemble(STEP, 3)
    states = many.init(network, seed=0)
    found = fl.evaluate(loss, states, batches(7))
    for i in range(3):
        for name, value in fl.evaluate(loss, fl.member(states, i), batches(7)).items():
            shown = f"{name}[{i}]"
            assert name.startswith("errors") or found[shown] == pytest.approx(value, rel=1e-5)


def test_it_is_shown_and_emptied_as_the_metric_of_one():
    many = fl.ensemble(STEP, 2)
    _, metrics = many(many.init(network, seed=0), batches(30)[0])
    spread = metrics["spread"]
    assert isinstance(spread, OfMembers) and repr(spread).startswith("Spread([")
    assert spread.empty().merge(spread) == spread
