from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import sklearn.metrics
import torch
from torch import Tensor

from fnloop.metrics.regression import mae, mse, r2, rmse
from fnloop.values.merging import merge


def example(outputs: tuple[int, ...] = (), offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randn(90, *outputs, generator=generator, dtype=torch.float64) + offset
    noise = torch.randn(90, *outputs, generator=generator, dtype=torch.float64)
    return targets + 0.3 * noise, targets


def merged(f: Callable[[Tensor, Tensor], Any], p: Tensor, y: Tensor) -> float:
    sizes = [1, 2, 60, 27]
    parts = zip(p.split(sizes), y.split(sizes), strict=True)
    return float(merge({"m": f(a, b)} for a, b in parts)["m"])


@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mse, sklearn.metrics.mean_squared_error),
        (mae, sklearn.metrics.mean_absolute_error),
        (r2, sklearn.metrics.r2_score),
    ],
)
def test_agrees_with_sklearn(ours: Any, theirs: Any, outputs: tuple[int, ...]) -> None:
    predictions, targets = example(outputs)
    expected = theirs(targets, predictions)
    assert float(ours(predictions, targets)) == pytest.approx(expected, rel=1e-12)
    assert merged(ours, predictions, targets) == pytest.approx(expected, rel=1e-12)


def test_rmse_is_one_root_of_the_whole() -> None:
    predictions, targets = example((2,))
    expected = math.sqrt(sklearn.metrics.mean_squared_error(targets, predictions))
    assert merged(rmse, predictions, targets) == pytest.approx(expected, rel=1e-12)


def test_r2_does_not_cancel_where_the_mean_is_large() -> None:
    predictions, targets = example(offset=1e8)
    expected = sklearn.metrics.r2_score(targets - 1e8, predictions - 1e8)
    assert merged(r2, predictions, targets) == pytest.approx(expected, rel=1e-6)


def test_r2_merge_is_associative_and_empty_is_its_neutral_element() -> None:
    predictions, targets = example(offset=5.0)
    a, b, c = (r2(p, y) for p, y in zip(predictions.split(30), targets.split(30), strict=True))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert float(left) == pytest.approx(float(right), rel=1e-13)
    assert float(a.merge(b.empty())) == float(a) == float(b.empty().merge(a))
    assert float(a.merge(r2(predictions[:0], targets[:0]))) == float(a)


def test_r2_at_the_edges() -> None:
    same = torch.ones(3)
    assert float(r2(same, same)) == 1.0
    assert float(r2(same + 1, same)) == 0.0
    assert math.isnan(float(r2(same[:1], same[:1])))


def test_half_precision_and_gradients() -> None:
    predictions = torch.full((4,), 300.0, dtype=torch.float16, requires_grad=True)
    metric = mse(predictions, torch.zeros(4, dtype=torch.float16))
    assert float(metric) == 90_000.0  # beyond float16
    assert not metric.total.requires_grad  # pyright: ignore


@pytest.mark.parametrize("metric", [mse, mae, rmse, r2])
def test_shapes_must_be_equal(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"\(5, 1\) and targets of shape \(5,\).*squeeze"):
        metric(torch.zeros(5, 1), torch.zeros(5))
