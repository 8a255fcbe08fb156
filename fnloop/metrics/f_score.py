"""The F1 score."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

import torch
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
        by_label: Whether the counts are those of multi-label targets: of the ones of each label.
    """

    right: Tensor
    predictions: Tensor
    targets: Tensor
    average: Average = "macro"
    by_label: bool = False

    def merge(self, other: Self) -> Self:
        if (self.by_label, self.right.shape) != (other.by_label, other.right.shape):
            raise ValueError(
                f"The F1 score of {_counted(self)} cannot be merged with that of "
                f"{_counted(other)}. Usual cause: binary logits of sequences [N, T], which are "
                "taken for T labels; use fl.metrics.f1(logits.flatten(), targets.flatten())."
            )
        return type(self)(
            self.right + other.right,
            self.predictions + other.predictions,
            self.targets + other.targets,
            self.average,
            self.by_label,
        )

    def value(self) -> Tensor:
        cases = self.predictions + self.targets
        if self.average == "micro":
            return ratio(2 * self.right.sum(), cases.sum())
        scores = ratio(2 * self.right, cases)
        if self.average == "binary":
            return scores[1]
        weights = self.targets
        if self.average == "macro":  # of classes, those that occur; of labels, all
            weights = ((cases.sum() if self.by_label else cases) > 0).expand_as(cases).long()
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
            Of multi-label targets, which are binary logits of shape [N, L], these three are over
            the scores of the L labels, of which macro counts those that never occur as 0;
            ``"binary"`` is one score over all labels. For binary logits of a sequence, [N, T], use
            ``logits.flatten(), targets.flatten()``.
        classes: Number of classes, at least C of the logits; default C, or 2 if binary. With
            ``classes=2`` the averages of binary logits are over the two classes, whatever the
            shape.
        ignore_index: Targets of this value are ignored, such as -100 for padding.

    Raises:
        ValueError: The shapes do not match, `classes` is missing for predicted labels or too few,
            `average` is unknown, it is ``"binary"`` for more than 2 classes, float targets with
            logits of more than 2 classes, or a label is none of the classes.

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
    by_label = average != "binary" and classes is None and _is_multi_label(logits, targets)
    n = targets.shape[1] if by_label else 0
    if by_label:  # the zeros of each label, then the ones of each
        places = torch.arange(n, device=targets.device)
        labels, guesses, c = labels * n + places, guesses * n + places, c * n
    right = labels == guesses
    counts = [
        count(guesses, c, right if chosen is None else right & chosen),
        count(guesses, c, chosen),
        count(labels, c, chosen),
    ]
    if by_label:
        counts = [each[n:] for each in counts]
    return F1(counts[0], counts[1], counts[2], average, by_label)


def _counted(score: F1) -> str:
    return f"{score.right.shape[-1]} {'labels' if score.by_label else 'classes'}"


def _is_multi_label(logits: Tensor, targets: Tensor) -> bool:
    return logits.shape == targets.shape and targets.ndim == 2 and targets.shape[1] > 1
