from __future__ import annotations

import functools
import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torchmetrics
import torchmetrics.classification as C

import fnloop as fl
from fnloop.metrics.accuracies import accuracy
from fnloop.metrics.adapter import from_torchmetrics
from fnloop.trees.nodes import tree_map

G = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(100, 4, generator=G), torch.randint(4, (100,), generator=G)
X = torch.randn(100, generator=G)
Y = X + torch.randn(100, generator=G)
SCORES, BINARY = torch.rand(100, generator=G), torch.randint(2, (100,), generator=G)

# One for each way of reducing states: sum, cat, raw tensors (None), max, min.
METRICS: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
    "accuracy": (C.MulticlassAccuracy(4), (LOGITS, LABELS)),
    "f1": (C.MulticlassF1Score(4, average="macro"), (LOGITS, LABELS)),
    "auroc": (C.BinaryAUROC(), (SCORES, BINARY)),
    "binned auroc": (C.BinaryAUROC(thresholds=20), (SCORES, BINARY)),
    "mse": (torchmetrics.MeanSquaredError(), (X, Y)),
    "r2": (torchmetrics.R2Score(), (X, Y)),
    "pearson": (torchmetrics.PearsonCorrCoef(), (X, Y)),
    "max": (torchmetrics.MaxMetric(), (X,)),
    "min": (torchmetrics.MinMetric(), (X,)),
    "cat": (torchmetrics.CatMetric(), (X,)),
    "mean": (torchmetrics.MeanMetric(), (X,)),
}


def whole(metric: Any, data: tuple[torch.Tensor, ...]) -> torch.Tensor:
    reference = metric.clone()
    reference.update(*data)
    return reference.compute()


@pytest.mark.lightning("L12")
@pytest.mark.parametrize("name", METRICS)
def test_merge_of_ragged_parts_is_the_whole(name: str) -> None:
    metric, data = METRICS[name]
    measure = from_torchmetrics(metric)
    parts = [measure(*p) for p in zip(*(x.split([10, 53, 37]) for x in data), strict=True)]
    expected = whole(metric, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for merged in (
            functools.reduce(lambda a, b: a.merge(b), parts),
            parts[0].merge(parts[1].merge(parts[2])),
            parts[0].merge(parts[1].empty()).merge(parts[1]).merge(parts[2]),
        ):
            torch.testing.assert_close(merged.value(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measure(*data).value(), expected)


def test_merging_and_looking_change_nothing() -> None:
    for metric, data in METRICS.values():
        measure = from_torchmetrics(metric)
        a, b = (measure(*(x[s] for x in data)) for s in (slice(0, 30), slice(30, 100)))
        before = a.value()
        a.merge(b).value()
        measure(*data)
        assert torch.equal(torch.as_tensor(a.value()), torch.as_tensor(before))
        assert metric.update_count == 0


def test_mean_states_are_weighted_by_updates() -> None:
    class Level(torchmetrics.Metric):
        full_state_update = False
        level: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.add_state("level", torch.tensor(0.0), dist_reduce_fx="mean")

        def update(self, x: torch.Tensor) -> None:
            self.level = x.mean()

        def compute(self) -> torch.Tensor:
            return self.level

    measure = from_torchmetrics(Level())
    a, b, c = (measure(torch.tensor(v)) for v in (1.0, 2.0, 6.0))
    assert float(a.merge(b).merge(c)) == float(a.merge(b.merge(c))) == 3.0


@pytest.mark.lightning("L12")
def test_agrees_with_our_own() -> None:
    measure = from_torchmetrics(C.MulticlassAccuracy(4, average="micro"))
    assert float(measure(LOGITS, LABELS)) == pytest.approx(float(accuracy(LOGITS, LABELS)))


def test_nothing_counted_is_nan_and_gradients_are_cut() -> None:
    measure = from_torchmetrics(torchmetrics.MeanSquaredError())
    metric = measure(X.clone().requires_grad_(), Y)
    assert not any(state.requires_grad for state in metric.folded.values())
    assert math.isnan(float(metric.empty()))


def test_wants_an_instance() -> None:
    with pytest.raises(
        TypeError, match=r"instance of a torchmetrics.Metric; it was given MeanMetric"
    ):
        from_torchmetrics(torchmetrics.MeanMetric)
    with pytest.raises(TypeError, match="it was given function"):
        from_torchmetrics(whole)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_that_keep_their_states_in_others_are_refused() -> None:
    inner = C.MulticlassAccuracy(4, average=None)
    match = r"other metrics in it \(MulticlassAccuracy\).*by themselves"
    for metric in (torchmetrics.MinMaxMetric(inner), inner + 1):
        with pytest.raises(TypeError, match=match):
            from_torchmetrics(metric)
    with pytest.raises(TypeError, match="MeanMetric"):
        from_torchmetrics(torchmetrics.RunningMean(2))
    found = from_torchmetrics(torchmetrics.ClasswiseWrapper(inner))(LOGITS, LABELS).value()
    assert [*found.values()] == [*whole(inner, (LOGITS, LABELS))]


def test_torchmetrics_is_not_imported() -> None:
    code = "import sys, fnloop.metrics; sys.exit('torchmetrics' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "cat"])  # as long as data
def test_of_a_population_each_member_has_its_own_value(name: str) -> None:
    metric, data = METRICS[name]
    measure = from_torchmetrics(metric)
    first, second = zip(*(x.split([50, 50]) for x in data), strict=True)

    def beside(*members: Any) -> Any:
        return tree_map(lambda *leaves: torch.stack(leaves), *members)

    a, b = measure(*first), measure(*second)
    skipped = measure(*first).empty()
    merged = beside(a, b, skipped, skipped).merge(beside(b, a.empty(), a, skipped))
    found = merged.value()
    alone = [whole(metric, data), whole(metric, second), whole(metric, first)]
    assert len(found) == 4 and found[3].isnan().all()
    for value, expected in zip(found, alone, strict=False):
        torch.testing.assert_close(value.to(expected.dtype), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_population_reports_each_members_value(mode: str) -> None:
    accuracy = from_torchmetrics(C.MulticlassAccuracy(4, average="micro"))
    x, y = torch.randn(60, 3, generator=G), LABELS[:60]

    def loss(model: Any, batch: Any) -> Any:
        scores = model(batch[0])
        return torch.nn.functional.cross_entropy(scores, batch[1]), {
            "accuracy": accuracy(scores, batch[1])
        }

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.sweep(step, {"sgd.lr": [0.1, 3.0, 0.0]}, mode=mode)
    states = many.init(lambda: torch.nn.Linear(3, 4))
    states, history = fl.fit(many, states, [(x[:40], y[:40]), (x[40:], y[40:])], epochs=3)
    assert history["accuracy[0]"] != history["accuracy[2]"]
    found = fl.evaluate(loss, states, [(x, y)])
    for i in range(3):
        with torch.no_grad():
            scores = fl.to_module(fl.member(states, i))(x)
        right = (scores.argmax(-1) == y).double().mean()
        assert found[f"accuracy[{i}]"] == pytest.approx(float(right), abs=1e-6)
