"""Whole numbers that users give, one for each example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fnloop.trees.show import short

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def whole_numbers(numbers: Any, who: str, what: str) -> Tensor:
    """Convert whole numbers, one for each example, to int64[n] on the CPU.

    Raises:
        TypeError: They are something else.
    """
    try:
        found = torch.as_tensor(numbers, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.ndim != 1 or (len(found) and found.dtype not in _WHOLE):
        got = type(numbers).__name__ if found is None else short(found)
        raise TypeError(f"{who} takes {what}, a list of whole numbers; got {got}.")
    return found.long()
