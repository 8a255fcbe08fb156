"""Regression metrics: mse, rmse, mae, r2."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from fnloop.metrics.label_layout import check_tensors
from fnloop.trees.nodes import tree
from fnloop.values.metrics import Mean, Metric, as_tensor


def mse(predictions: Tensor, targets: Tensor) -> Mean:
    """The mean squared error over all values.

    Args:
        predictions: float[N, ...].
        targets: Of the same shape.

    Raises:
        ValueError: If the shapes differ.

    >>> float(mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])))
    2.0
    """
    error = _difference(predictions, targets)
    return Mean(error.square().sum(), error.numel())


def mae(predictions: Tensor, targets: Tensor) -> Mean:
    """The mean absolute error over all values.

    Args:
        predictions: float[N, ...].
        targets: Of the same shape.

    Raises:
        ValueError: If the shapes differ.

    >>> float(mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])))
    1.0
    """
    error = _difference(predictions, targets)
    return Mean(error.abs().sum(), error.numel())


@tree
class Rmse(Mean):
    """The square root of a mean."""

    stacks: ClassVar[bool] = True

    def value(self) -> Tensor:
        return as_tensor(super().value(), torch.device("cpu")).sqrt()


def rmse(predictions: Tensor, targets: Tensor) -> Rmse:
    """The root of the mean squared error over all values.

    Args:
        predictions: float[N, ...].
        targets: Of the same shape.

    Raises:
        ValueError: If the shapes differ.

    >>> float(rmse(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 5.0])))
    3.0
    """
    mean = mse(predictions, targets)
    return Rmse(mean.total, mean.weight)


@tree
class R2(Metric):
    """The coefficient of determination.

    Merges by the pairwise update of Chan, Golub & LeVeque (1983), which avoids cancellation if the
    mean of the targets is large.

    Attributes:
        weight: float64[]; number of examples.
        mean: float64[...]; mean of the targets.
        spread: float64[...]; sum of the targets' squared deviations from their mean.
        residual: float64[...]; sum of the squared errors.
    """

    reduction: ClassVar[str] = "merge"

    weight: Tensor
    mean: Tensor
    spread: Tensor
    residual: Tensor

    def merge(self, other: Self) -> Self:
        weight = self.weight + other.weight
        share = other.weight / weight.clamp(min=1)
        shift = other.mean - self.mean
        return type(self)(
            weight,
            self.mean + shift * share,
            self.spread + other.spread + shift.square() * self.weight * share,
            self.residual + other.residual,
        )

    def value(self) -> Tensor:
        constant = self.spread == 0
        score = 1 - self.residual / torch.where(constant, 1, self.spread)
        score = torch.where(constant, (self.residual == 0).double(), score)
        return torch.where(self.weight < 2, torch.nan, score.mean())


def r2(predictions: Tensor, targets: Tensor) -> R2:
    """The fraction of the targets' variance that is explained; ``sklearn.metrics.r2_score``.

    Averaged over several outputs. For constant targets it is 1 if every prediction is exact, else
    0. For fewer than two examples it is nan.

    Args:
        predictions: float[N, ...].
        targets: Of the same shape.

    Raises:
        ValueError: If the shapes differ.

    >>> round(float(r2(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))), 3)
    0.5
    """
    residual = _difference(predictions, targets).square().sum(0)
    y = targets.detach().double()
    n = y.shape[0]
    mean = y.sum(0) / max(n, 1)
    weight = torch.full((), n, dtype=torch.float64, device=y.device)
    return R2(weight, mean, (y - mean).square().sum(0), residual)


def _difference(predictions: Tensor, targets: Tensor) -> Tensor:
    """``predictions - targets``, computed in float64 to avoid cancellation of large numbers."""
    check_tensors(predictions, targets)
    if predictions.shape != targets.shape:
        raise ValueError(
            f"Predictions of shape {tuple(predictions.shape)} and targets of shape "
            f"{tuple(targets.shape)} differ, and broadcasting would compare every prediction with "
            "every target. Usual cause: a last dimension of 1; use predictions.squeeze(-1)."
        )
    return predictions.detach().double() - targets.detach().double()
