"""Flags that are devices and dtypes of torch go by their names: ``cuda``, ``bfloat16``.

The module is imported with a recipe, which has imported torch.
"""

from __future__ import annotations

import torch
from jsonargparse.typing import register_type


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(text)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


register_type(torch.device, str, torch.device, (RuntimeError, TypeError))
register_type(torch.dtype, _name, _dtype)
