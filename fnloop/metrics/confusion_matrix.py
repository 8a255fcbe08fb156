"""The confusion matrix, and what follows from it."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fnloop.metrics.label_layout import class_count, count, kept, predicted, true_labels
from fnloop.trees.nodes import tree
from fnloop.values.metrics import Metric


@tree
class Confusion(Metric):
    """How often each class was taken for each.

    Its value is a dict: accuracy, and precision, recall and F1 averaged over the classes that occur
    (in targets or predictions). A ratio without cases is 0, as in scikit-learn.

    Attributes:
        matrix: int64[C, C]; rows are targets, columns predictions.
    """

    matrix: Tensor

    def merge(self, other: Self) -> Self:
        return type(self)(self.matrix + other.matrix)

    def value(self) -> dict[str, Tensor]:
        occurs = (self.matrix.sum(0) + self.matrix.sum(1)) > 0
        ratios = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        right = self.matrix.diagonal().sum().double()
        return {
            "accuracy": right / self.matrix.sum(),
            **{name: (ratio * occurs).sum() / occurs.sum() for name, ratio in ratios.items()},
        }

    @property
    def precision(self) -> Tensor:
        """float64[C]: of the predictions of a class, the fraction that is right."""
        return ratio(self.matrix.diagonal(), self.matrix.sum(0))

    @property
    def recall(self) -> Tensor:
        """float64[C]: of the examples of a class, the fraction that was found."""
        return ratio(self.matrix.diagonal(), self.matrix.sum(1))

    @property
    def f1(self) -> Tensor:
        """float64[C]: the harmonic mean of precision and recall."""
        return ratio(2 * self.matrix.diagonal(), self.matrix.sum(0) + self.matrix.sum(1))


def confusion(
    logits: Tensor, targets: Tensor, classes: int | None = None, ignore_index: int | None = None
) -> Confusion:
    """The confusion matrix of a batch.

    Args:
        logits: As for `fl.metrics.accuracy`.
        targets: int64[N, ...], each in ``range(classes)`` or `ignore_index`.
        classes: Number of classes; default as many as there are logits (2 if binary).
        ignore_index: A target that does not count, such as -100 for padding.

    Raises:
        ValueError: If the shapes do not fit, or `classes` is needed.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), classes=2).matrix.tolist()
    [[1, 1], [0, 1]]
    """
    c = class_count(logits, targets, classes)
    labels = true_labels(targets)
    pairs = labels * c + predicted(logits, targets)
    return Confusion(count(pairs, c * c, kept(labels, ignore_index)).reshape(c, c))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, float64; 0 where there is no case."""
    return part.double() / torch.clamp(whole, min=1)
