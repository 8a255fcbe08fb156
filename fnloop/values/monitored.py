"""The metric that a callback or a checkpoint monitors."""

from __future__ import annotations

import re
import warnings

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
    name = (monitor or "").rpartition("/")[2].lower()
    if mode == "min" and _LARGER_IS_BETTER.fullmatch(name):
        warnings.warn(
            f'{who} takes the smallest {monitor!r} for the best, as mode is "min". Usually more '
            'of it is better: mode="max".',
            stacklevel=3,
        )
