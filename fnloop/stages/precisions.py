"""Precisions of a model by name."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop._torch.tf32 import tf32
from fnloop.stages.module_precisions import DTYPES, ModulePrecisions
from fnloop.trees.nodes import tree_map


class Precision(NamedTuple):
    """What a precision means.

    Attributes:
        autocast: The dtype of autocast; float32 for none, even where a step is called in one.
        stored: The dtype of parameters, buffers and batch; None if they stay as they are.
        rounded: Whether matrix products of float32 may be rounded to TF32.
    """

    autocast: torch.dtype
    stored: torch.dtype | None = None
    rounded: bool = False

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """A context manager for the forward and backward pass."""
        return tf32() if self.rounded else _NOTHING


_NOTHING = contextlib.nullcontext()

PRECISIONS = {
    "fp32": Precision(torch.float32),
    "tf32": Precision(torch.float32, rounded=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
    "bf16-true": Precision(torch.float32, torch.bfloat16),
    "fp16-true": Precision(torch.float32, torch.float16),
    "fp64": Precision(torch.float32, torch.float64),
}


def check_modules(precision: str, modules: ModulePrecisions | None) -> None:
    """Check that the precisions of modules fit that of the model.

    Raises:
        ValueError: There is no such precision, or that of the model takes no others beside it.
    """
    if modules is None:
        return
    for pattern, own in modules.items():
        if own not in DTYPES:
            raise ValueError(
                f'amp(modules={{{pattern!r}: ...}}) takes "fp32", "bf16" or "fp16", got {own!r}.'
            )
    if PRECISIONS[precision].stored is not None:
        raise ValueError(
            f"amp({precision!r}) stores all parameters in one dtype, so modules= has no meaning. "
            f'Precisions of modules go with autocast: amp("bf16", modules={{...}}).'
        )


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors of a tree; all else stays.

    >>> cast((torch.ones(2), torch.arange(2)), torch.float64)
    (tensor([1., 1.], dtype=torch.float64), tensor([0, 1]))
    """
    return tree_map(lambda leaf: leaf.to(dtype) if _is_float(leaf) else leaf, tree)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
