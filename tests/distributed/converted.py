"""Metrics of torchmetrics are merged over ranks as over batches: run by ``test_converted.py``."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torchmetrics import classification

import fnloop as fl
from tests.distributed.misuse import refused
from tests.distributed.scenario import main, scenario

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(37, 6, generator=G), torch.randint(0, 3, (37,), generator=G)

METRICS = {
    "sum": torchmetrics.SumMetric(),
    "mean": torchmetrics.MeanMetric(),
    "max": torchmetrics.MaxMetric(),
    "counts": classification.MulticlassConfusionMatrix(3),
    "by class": torchmetrics.ClasswiseWrapper(classification.MulticlassRecall(3, average=None)),
    "accuracy": classification.MulticlassAccuracy(3),
    "auroc": classification.MulticlassAUROC(3),
}
OF_ONE = ("sum", "mean", "max")


def net():
    return nn.Linear(6, 3)


def measuring(names):
    """A loss that reports these metrics."""
    measures = {name: fl.metrics.from_torchmetrics(METRICS[name]) for name in names}

    def loss(model, batch):
        z = model(batch[0])
        given = {n: (batch[0],) if n in OF_ONE else (z.softmax(-1), batch[1]) for n in names}
        return F.cross_entropy(z, batch[1]), {n: f(*given[n]) for n, f in measures.items()}

    return loss


def step_of(loss, *stages):
    return fl.pipe(loss, fl.grad, *stages, fl.update(fl.optim.sgd(0.1)))


def by_itself(name, state, rows):
    """The value that torchmetrics computes from all rows in one process."""
    x, y = X[:rows], Y[:rows]
    metric = METRICS[name].clone()
    for part in metric.modules():
        part.sync_on_compute = part._to_sync = False
    z = fl.to_module(state)(x)
    metric.update(*((x,) if name in OF_ONE else (z.softmax(-1), y)))
    return metric.compute()


def assert_value(found, expected):
    torch.testing.assert_close(found, expected, check_dtype=False)


@scenario
def a_step_counts_each_example_once(mesh):
    for rows in (36, 37, 3, 1):
        step = fl.shard(step_of(measuring(METRICS), fl.accumulate(2)), mesh)
        state = step.init(net, seed=0)
        _, metrics = step(state, (X[:rows], Y[:rows]))
        for name in METRICS:
            assert_value(metrics[name].value(), by_itself(name, state, rows))


@scenario
def one_rank_alone_reads_a_value(mesh):
    step = fl.shard(step_of(measuring(["mean"])), mesh)
    _, metrics = step(step.init(net, seed=0), (X, Y))
    if mesh.rank == 0:
        assert float(metrics["mean"]) == pytest.approx(float(X.mean()))


@scenario
def an_evaluation_is_that_of_one_process(mesh):
    loss = measuring(METRICS)
    state = step_of(loss).init(net, seed=0)
    for rows in (7, 36, 37):
        data = fl.Batches((X, Y), rows, shuffle=False)
        found = fl.evaluate(loss, state, data, mesh=mesh)
        for name in (*OF_ONE, "accuracy", "auroc"):
            assert found[name] == pytest.approx(float(by_itself(name, state, 37)), rel=1e-5)


@scenario
def training_and_validation_where_batches_do_not_divide_evenly(mesh):
    names = ["auroc", "sum"]
    loss, data = measuring(names), fl.Batches((X, Y), 10)

    def fit(step):
        validation = fl.validate(loss, fl.Batches((X, Y), 7, shuffle=False))
        return fl.fit(step, step.init(net, seed=0), data, epochs=2, callbacks=[validation])

    expected = fit(step_of(loss, fl.accumulate(mesh.data)))[1]
    for plan in ("replicate", "zero2", "zero3"):
        _, history = fit(fl.shard(step_of(loss), mesh, plan))
        for name in ("auroc", "sum", "val/auroc", "val/sum"):
            assert history[name] == pytest.approx(expected[name], rel=1e-5), (plan, name)
    canonical = fl.shard(step_of(loss, fl.accumulate(3)), mesh, reduce="canonical")
    _, history = fit(canonical)
    assert history["auroc"] == pytest.approx(fit(step_of(loss, fl.accumulate(3)))[1]["auroc"])


@scenario
def what_one_rank_cannot_send_is_an_error_on_all(mesh):
    @fl.tree
    class Odd(fl.metrics.Metric):
        reduction = "merge"
        n: Tensor
        held: object = fl.static()

        def merge(self, other):
            return self

        def value(self):
            return self.n

    def loss(model, batch):
        held = threading.Lock() if mesh.rank == 1 else None
        return F.cross_entropy(model(batch[0]), batch[1]), {"odd": Odd(torch.ones(()), held)}

    state, data = step_of(loss).init(net, seed=0), fl.Batches((X, Y), 10)
    match = "Rank . cannot send .* pickle"
    refused(mesh, match, lambda: fl.evaluate(loss, state, data, mesh=mesh))


if __name__ == "__main__":
    main()
