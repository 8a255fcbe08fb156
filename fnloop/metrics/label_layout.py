"""Shapes of logits and targets, as in ``torch.nn.functional.cross_entropy``."""

from __future__ import annotations

import torch
from torch import Tensor

from fnloop.trees.show import short
from fnloop.values.counts import as_count


def check_tensors(predictions: Tensor, targets: Tensor) -> None:
    """Refuse arguments of a metric that are no tensors.

    Raises:
        TypeError: One is none.
    """
    for value, what in ((predictions, "predictions, or logits,"), (targets, "targets")):
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"Metrics take {what} as a tensor, got {short(value)}. Usual: "
                "fl.metrics.accuracy(logits, targets), from torch.as_tensor(x) if need be."
            )


def class_dim(logits: Tensor, targets: Tensor) -> int | None:
    """The class dimension of `logits`; None for binary logits or predicted labels.

    Args:
        logits: float[N, C, ...] or float[C]; float[N, ...] if binary; or predicted labels, integers
            of the targets' shape.
        targets: int64[N, ...] or int64[].

    Raises:
        ValueError: The shapes are none of these, or there is only one class.
    """
    check_tensors(logits, targets)
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


def true_labels(logits: Tensor, targets: Tensor) -> Tensor:
    """Convert targets to int64.

    Float targets are binary, with threshold 0.5; of predicted labels they are rounded.

    Raises:
        ValueError: Float targets with logits of more than 2 classes.
    """
    dim = class_dim(logits, targets)
    if not targets.is_floating_point():
        return targets.long()
    if dim is not None and logits.shape[dim] > 2:
        raise ValueError(
            f"Targets of {logits.shape[dim]} classes are integers, got {targets.dtype}; float "
            "targets are those of 2 classes. Usual cause: a column of class numbers that was read "
            "as floats; use targets.long()."
        )
    if logits.is_floating_point() or logits.dtype == torch.bool:
        return targets.gt(0.5).long()
    return targets.round().long()


def class_count(logits: Tensor, targets: Tensor, classes: int | None) -> int:
    """The number of classes: `classes` if given, else C of the logits, or 2 if binary.

    Raises:
        ValueError: `classes` is missing for predicted labels, or is not what the logits tell.
    """
    given = None if classes is None else as_count(classes, "classes=", 1)
    dim = class_dim(logits, targets)
    if dim is None and not logits.is_floating_point():
        if given is None:
            raise ValueError(
                "Predicted labels do not tell how many classes there are; give classes=."
            )
        return given
    if dim is None and given not in (None, 2):
        raise ValueError(
            f"Predictions of dtype {logits.dtype} and of the targets' shape are binary logits, got "
            f"classes={given}. Usual cause: predicted labels as floats; use predictions.long()."
        )
    found = 2 if dim is None else logits.shape[dim]
    if given is not None and given < found:
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} predict {found} classes, got classes={given}. "
            "Leave out classes=, or give the model as many outputs."
        )
    return found if given is None else given


def class_indices(logits: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The true and the predicted labels, for `count`.

    What is not in ``range(classes)`` would count in the row of another class, and a compiled index
    of -1 is the last one. It lies behind the last pair of classes, which is an error everywhere.
    """
    labels, guesses = true_labels(logits, targets), predicted(logits, targets)
    labels = torch.where(labels < 0, classes**2, labels)
    if not logits.is_floating_point():
        guesses = torch.where((guesses < 0) | (guesses >= classes), classes**2, guesses)
    return labels, guesses


def count(labels: Tensor, size: int, chosen: Tensor | None) -> Tensor:
    """Count each label, where the mask `chosen` is true (None means all): int64[size].

    Raises:
        ValueError: A label that counts is not in ``range(size)``.
    """
    flat = labels.reshape(-1)
    ones = torch.ones_like(flat)
    if chosen is not None:
        # No indexing with a mask: the size of the result depends on values, which synchronizes.
        ones = chosen.reshape(-1).long()
        flat = torch.where(chosen.reshape(-1), flat, 0)
    zeros = torch.zeros(size, dtype=torch.int64, device=labels.device)
    try:
        return zeros.index_add(0, flat, ones)
    except IndexError:
        raise ValueError(
            "A target or a predicted label is none of the classes, which count from 0. Give "
            "classes= as many as there are, and ignore_index= for padding."
        ) from None


def kept(targets: Tensor, ignore_index: int | None) -> Tensor | None:
    """The mask of targets that are not ignored, bool of their shape; None if all count."""
    if ignore_index is None:
        return None
    # -100 is no uint8, and with a threshold it would be label 0.
    values = targets if targets.is_floating_point() else targets.long()
    return values != as_count(ignore_index, "ignore_index=", None)
