"""The metric that a callback or a checkpoint monitors."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

from torch import Tensor

_LARGER_IS_BETTER = re.compile(
    r"(accuracy|acc|auroc|auc|f1|precision|recall|iou|dice|r2|bleu|psnr|ssim)(_?(score|top_?\d+))?"
)


def check_mode(mode: str, monitor: str | None, who: str) -> None:
    """Check a mode, and warn where a metric that should be large is to be small.

    Args:
        mode: "min" if smaller is better, or "max".
        monitor: Name of the metric, or None.
        who: What monitors it, for messages.

    Raises:
        ValueError: The mode is neither.

    >>> check_mode("max", "val/accuracy", "early_stopping")
    """
    if mode not in ("min", "max"):
        raise ValueError(f'{who} takes mode="min" or mode="max", got {mode!r}.')
    if mode == "min" and larger_is_better(monitor or ""):
        warnings.warn(
            f'{who} takes the smallest {monitor!r} for the best, as mode is "min". Usually more '
            'of it is better: mode="max".',
            stacklevel=3,
        )


def larger_is_better(name: str) -> bool:
    """Whether more is better of a metric, as far as its name tells.

    >>> larger_is_better("val/accuracy"), larger_is_better("val/loss")
    (True, False)
    """
    return _LARGER_IS_BETTER.fullmatch(name.rpartition("/")[2].lower()) is not None


def best_of(value: Any, mode: str) -> float:
    """A metric's value as one number: of a population, the best of its members.

    >>> import torch
    >>> best_of(torch.tensor([3.0, 2.0, math.nan]), "min"), best_of(0.5, "max")
    (2.0, 0.5)
    """
    if not isinstance(value, Tensor) or not value.ndim:
        return float(value)
    known = [number for number in value.reshape(-1).tolist() if not math.isnan(number)]
    return (min if mode == "min" else max)(known, default=math.nan)
