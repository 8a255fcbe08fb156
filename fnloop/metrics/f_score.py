"""The F1 score."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from torch import Tensor

from fnloop.metrics.confusion_matrix import ratio
from fnloop.metrics.label_layout import class_count, class_indices, count, kept
from fnloop.trees.nodes import tree
from fnloop.values.metrics import Metric

Average: TypeAlias = Literal["macro", "micro", "weighted", "binary"]


@tree
class F1(Metric):
    """The harmonic mean of precision and recall, from counts per class.

    Attributes:
        right: int64[C]; number of correct predictions.
        predictions: int64[C]; number of predictions.
        targets: int64[C]; number of targets.
        average: See `fl.metrics.f1`.
    """

    right: Tensor
    predictions: Tensor
    targets: Tensor
    average: Average = "macro"

    def merge(self, other: Self) -> Self:
        return type(self)(
            self.right + other.right,
            self.predictions + other.predictions,
            self.targets + other.targets,
            self.average,
        )

    def value(self) -> Tensor:
        cases = self.predictions + self.targets
        if self.average == "micro":
            return ratio(2 * self.right.sum(), cases.sum())
        scores = ratio(2 * self.right, cases)
        if self.average == "binary":
            return scores[1]
        weights = self.targets if self.average == "weighted" else (cases > 0).long()
        return (scores * weights).sum() / weights.sum()


def f1(
    logits: Tensor,
    targets: Tensor,
    average: Average | None = None,
    classes: int | None = None,
    ignore_index: int | None = None,
) -> F1:
    """The F1 score of a batch; ``sklearn.metrics.f1_score``.

    Args:
        logits: As for `fl.metrics.accuracy`.
        targets: int64[N, ...], each in ``range(classes)`` or `ignore_index`; binary targets may be
            bool or float. Others are errors: compiled, an ``IndexError``; on an accelerator, its
            failed assertion.
        average: ``"binary"`` (the score of class 1; default for binary logits), ``"macro"`` (the
            mean over the classes that occur; default otherwise), ``"weighted"`` (the mean weighted
            by the number of targets) or ``"micro"`` (one score from the counts of all classes).
        classes: Number of classes, at least C of the logits; default C, or 2 if binary.
        ignore_index: Targets of this value are ignored, such as -100 for padding.

    Raises:
        ValueError: The shapes do not match, `classes` is missing for predicted labels or too few,
            `average` is unknown, it is ``"binary"`` for more than 2 classes, float targets with
            logits of more than 2 classes, or a label is none of the classes.

    >>> import torch
    >>> float(f1(torch.tensor([2.0, -1.0, 3.0]), torch.tensor([1, 1, 1])))
    0.8
    """
    c = class_count(logits, targets, classes)
    if average is None:
        average = (
            "binary" if logits.is_floating_point() and logits.shape == targets.shape else "macro"
        )
    if average not in ("macro", "micro", "weighted", "binary"):
        raise ValueError(f'average is "macro", "micro", "weighted" or "binary"; got {average!r}.')
    if average == "binary" and c != 2:
        raise ValueError(f'average="binary" is for 2 classes; there are {c}.')
    labels, guesses = class_indices(logits, targets, c)
    chosen = kept(targets, ignore_index)
    right = labels == guesses
    return F1(
        count(guesses, c, right if chosen is None else right & chosen),
        count(guesses, c, chosen),
        count(labels, c, chosen),
        average,
    )
