"""Weights of classes and of examples: torch's numbers, whole, in parts and in an evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl

MAKE = torch.Generator().manual_seed(0)
X = torch.randn(67, 5, generator=MAKE, dtype=torch.float64)
Y = torch.randint(4, (67,), generator=MAKE) * (torch.rand(67, generator=MAKE) < 0.5)  # 0 is common
W = torch.tensor([0.3, 1.7, 0.0, 2.5], dtype=torch.float64)
OWN = torch.rand(67, generator=MAKE, dtype=torch.float64).round(decimals=1)  # some are zero
CRITERION = nn.CrossEntropyLoss(weight=W)


def by_class(model: Any, batch: Any) -> Any:
    x, y, _ = batch
    return fl.Mean(F.cross_entropy(model(x), y, weight=W, reduction="sum"), W[y].sum())


def by_example(model: Any, batch: Any) -> Any:
    x, y, weight = batch
    losses = F.cross_entropy(model(x), y, reduction="none")
    return fl.Mean((weight * losses).sum(), weight.sum())


def by_both(model: Any, batch: Any) -> Any:
    x, y, weight = batch
    weight = weight * W[y]
    losses = F.cross_entropy(model(x), y, reduction="none")
    return fl.Mean((weight * losses).sum(), weight.sum())


def weighted_mean(weight: Tensor) -> Any:
    return lambda z, y: (weight * F.cross_entropy(z, y, reduction="none")).sum() / weight.sum()


TORCH = {by_class: CRITERION, by_example: weighted_mean(OWN), by_both: weighted_mean(OWN * W[Y])}


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("k", [1, 2, 7, 67])
@pytest.mark.parametrize("loss", TORCH)
def test_gradients_in_parts_are_torchs_of_the_whole(loss: Any, k: int) -> None:
    model = net()
    step = fl.pipe(loss, fl.grad, fl.accumulate(k))
    _, grads = step(step.init(model), (X, Y, OWN))
    value = TORCH[loss](model(X), Y)
    value.backward()
    assert float(grads.metrics["loss"]) == pytest.approx(value.item(), rel=1e-12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads.mean[name], p.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", TORCH)
@pytest.mark.parametrize("size", [67, 10, 1])
def test_an_evaluation_in_batches_is_torchs_of_the_whole(loss: Any, size: int) -> None:
    model = net()
    state, expected = fl.pipe(loss, fl.grad).init(model), TORCH[loss](model(X), Y).item()
    for data in (
        fl.Batches((X, Y, OWN), size),
        DataLoader(TensorDataset(X, Y, OWN), size, shuffle=True),
    ):
        assert fl.evaluate(loss, state, data)["loss"] == pytest.approx(expected, rel=1e-12)


def test_groups_of_a_loaders_batches_train_as_torch_does_on_large_ones() -> None:
    model = net()
    step = fl.pipe(by_class, fl.grad, fl.accumulate(4), fl.update(fl.optim.sgd(0.5)))
    data = fl.data.group(DataLoader(TensorDataset(X, Y, OWN), 5), 4)
    state, _ = fl.fit(step, step.init(model), data, epochs=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for start in range(0, 67, 20):
        optimizer.zero_grad()
        CRITERION(model(X[start : start + 20]), Y[start : start + 20]).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-10, atol=1e-13)


def test_weights_from_counts_are_those_of_scikit_learn() -> None:
    known: Any = pytest.importorskip("sklearn.utils.class_weight")
    counts = torch.bincount(Y)
    weights = len(Y) / (len(counts) * counts)
    expected = known.compute_class_weight("balanced", classes=counts.nonzero()[:, 0].numpy(), y=Y)
    torch.testing.assert_close(weights.double(), torch.from_numpy(expected), rtol=1e-6, atol=0)
    each = weights[Y]  # of each example: every class has the same share, and the mean is 1
    torch.testing.assert_close(each.mean(), torch.tensor(1.0))
    shares = torch.zeros(4).index_add_(0, Y, each) / len(Y)
    torch.testing.assert_close(shares, torch.full((4,), 0.25))


def test_a_batch_of_classes_that_do_not_count_is_skipped() -> None:
    step = fl.pipe(by_class, fl.grad, fl.update(fl.optim.sgd(0.5)))
    state = step.init(net())
    after, metrics = step(state, (X[:3], torch.full((3,), 2), OWN[:3]))
    assert fl.tree_equal(after.params, state.params) and float(metrics["skipped"]) == 1
