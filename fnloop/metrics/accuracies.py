"""The fraction of correct predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from fnloop.metrics.label_layout import class_dim, kept, predicted, true_labels
from fnloop.values.counts import as_count
from fnloop.values.metrics import Mean


def accuracy(logits: Tensor, targets: Tensor, ignore_index: int | None = None) -> Mean:
    """The fraction of targets whose logit is the largest, or has the right sign if binary.

    Args:
        logits: float[N, C, ...], as for ``cross_entropy``; float[N, ...] for binary targets (each
            label of a multi-label example counts separately); or predicted labels, int64[N, ...].
        targets: int64[N, ...]; binary targets may be bool or float.
        ignore_index: Targets of this value are ignored, such as -100 for padding.

    Raises:
        ValueError: The shapes do not match, or float targets with logits of more than 2 classes.

    >>> float(accuracy(torch.tensor([[0.1, 2.0], [1.0, -1.0]]), torch.tensor([1, 1])))
    0.5
    """
    right = predicted(logits, targets) == true_labels(logits, targets)
    return _mean(right, kept(targets, ignore_index))


def top_k_accuracy(
    logits: Tensor, targets: Tensor, k: int = 5, ignore_index: int | None = None
) -> Mean:
    """The fraction of targets whose logit is among the `k` largest.

    Args:
        logits: float[N, C, ...], as for ``cross_entropy``.
        targets: int64[N, ...].
        k: From 1 to C.
        ignore_index: Targets of this value are ignored, such as -100 for padding.

    Raises:
        ValueError: The shapes do not match, or `k` is out of range.

    >>> logits = torch.tensor([[0.1, 0.2, 0.3], [3.0, 2.0, 1.0]])
    >>> float(top_k_accuracy(logits, torch.tensor([1, 2]), k=2))
    0.5
    """
    dim = class_dim(logits, targets)
    if dim is None:
        raise ValueError("top_k_accuracy needs one logit for each class: [N, C, ...].")
    k = as_count(k, "top_k_accuracy(k=...)", 1)
    if k > logits.shape[dim]:
        raise ValueError(f"k is from 1 to the number of classes, {logits.shape[dim]}; got {k}.")
    best = logits.detach().topk(k, dim).indices
    return _mean((best == targets.unsqueeze(dim)).any(dim), kept(targets, ignore_index))


def _mean(right: Tensor, chosen: Tensor | None) -> Mean:
    if chosen is None:
        return Mean(right.sum(dtype=torch.float64), right.numel())
    return Mean((right & chosen).sum(dtype=torch.float64), chosen.sum(dtype=torch.float64))
