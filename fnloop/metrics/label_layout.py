"""What logits and targets look like: as in ``torch.nn.functional.cross_entropy``."""

from __future__ import annotations

import torch
from torch import Tensor


def class_dim(logits: Tensor, targets: Tensor) -> int | None:
    """The dimension of `logits` that holds the classes; None if they are binary, or labels.

    Args:
        logits: float[N, C, ...] (or float[C]); float[N, ...] if binary, one logit each; or integers
            of the targets' shape, which are labels already.
        targets: int64[N, ...] (or int64[]).

    Raises:
        ValueError: If the shapes fit none of these, or there is only one class.
    """
    if logits.shape == targets.shape:
        return None
    dim = 1 if logits.ndim > 1 else 0
    if logits.ndim != targets.ndim + 1 or logits.shape[:dim] + logits.shape[dim + 1 :] != (
        targets.shape
    ):
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} do not fit targets of shape "
            f"{tuple(targets.shape)}. Expected [N, C, ...] and [N, ...], or the same shape for "
            "binary logits. Where the classes come last, use logits.movedim(-1, 1)."
        )
    if logits.shape[dim] == 1:
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} have one class, which is always right. For "
            f"binary logits use logits.squeeze({dim})."
        )
    return dim


def predicted(logits: Tensor, targets: Tensor) -> Tensor:
    """The most likely labels, int64 of the targets' shape; see `class_dim` for the layout."""
    dim = class_dim(logits, targets)
    if dim is not None:
        return logits.detach().argmax(dim)
    return logits.detach().gt(0).long() if logits.is_floating_point() else logits.long()


def true_labels(targets: Tensor) -> Tensor:
    """Targets as int64; binary ones may be floats."""
    return targets.gt(0.5).long() if targets.is_floating_point() else targets.long()


def class_count(logits: Tensor, targets: Tensor, classes: int | None) -> int:
    """How many classes there are: `classes`, or as many as the logits have."""
    if classes is not None:
        return classes
    dim = class_dim(logits, targets)
    if dim is not None:
        return logits.shape[dim]
    if logits.is_floating_point():
        return 2
    raise ValueError("Predicted labels do not tell how many classes there are; give classes=.")


def count(labels: Tensor, classes: int, chosen: Tensor | None) -> Tensor:
    """int64[classes]: how often each label occurs, where `chosen` (all, if None)."""
    flat = labels.reshape(-1)
    zeros = torch.zeros(classes, dtype=torch.int64, device=labels.device)
    if chosen is None:
        return zeros.index_add(0, flat, torch.ones_like(flat))
    # Not by indexing with a mask, whose result has a size that the device would have to tell.
    chosen = chosen.reshape(-1)
    return zeros.index_add(0, torch.where(chosen, flat, 0), chosen.long())


def kept(labels: Tensor, ignore_index: int | None) -> Tensor | None:
    """Which targets count; None if all do."""
    return None if ignore_index is None else labels != ignore_index
