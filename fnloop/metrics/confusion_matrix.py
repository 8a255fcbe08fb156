"""The confusion matrix, and the scores computed from it."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fnloop.metrics.label_layout import class_count, class_indices, count, kept
from fnloop.trees.nodes import tree
from fnloop.values.metrics import Metric


@tree
class Confusion(Metric):
    """A confusion matrix of counts.

    Its value is a dict: accuracy, and the macro averages of precision, recall and F1 over the
    classes that occur in targets or predictions. A ratio with denominator 0 is 0, as in
    scikit-learn.

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
        """float64[C]; correct predictions of each class, divided by its predictions."""
        return ratio(self.matrix.diagonal(), self.matrix.sum(0))

    @property
    def recall(self) -> Tensor:
        """float64[C]; correct predictions of each class, divided by its targets."""
        return ratio(self.matrix.diagonal(), self.matrix.sum(1))

    @property
    def f1(self) -> Tensor:
        """float64[C]; the harmonic mean of precision and recall of each class."""
        return ratio(2 * self.matrix.diagonal(), self.matrix.sum(0) + self.matrix.sum(1))


def confusion(
    logits: Tensor, targets: Tensor, classes: int | None = None, ignore_index: int | None = None
) -> Confusion:
    """The confusion matrix of a batch.

    Args:
        logits: As for `fl.metrics.accuracy`.
        targets: int64[N, ...], each in ``range(classes)`` or `ignore_index`; binary targets may be
            bool or float. Others are errors: compiled, an ``IndexError``; on an accelerator, its
            failed assertion.
        classes: Number of classes, at least C of the logits; default C, or 2 if binary.
        ignore_index: Targets of this value are ignored, such as -100 for padding.

    Raises:
        ValueError: The shapes do not match, `classes` is missing for predicted labels or too few,
            float targets with logits of more than 2 classes, or a label is none of the classes.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), classes=2).matrix.tolist()
    [[1, 1], [0, 1]]
    """
    c = class_count(logits, targets, classes)
    labels, guesses = class_indices(logits, targets, c)
    pairs = labels * c + guesses
    return Confusion(count(pairs, c * c, kept(targets, ignore_index)).reshape(c, c))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` in float64; 0 where both are 0."""
    return part.double() / torch.clamp(whole, min=1)
