"""What a stage passes down to the stages that it wraps, during one call."""

from __future__ import annotations

import contextlib
from typing import Any, Self

import torch

from fnloop._torch.tracing import casting as is_casting
from fnloop.trees.nodes import static, tree

_NOTHING = contextlib.nullcontext()


@tree
class Context:
    """`State.context`: empty outside a call, and never saved.

    Attributes:
        micro: Index of the micro-batch; nested `fl.accumulate` stages count in one flat sequence.
        autocast: The autocast dtype of the model, float32 for none; None without `fl.amp`, which
            leaves an autocast around the call as it is.
        modules: The `ModulePrecisions` of some modules; or None.
        scale: float32[]; the loss scale, applied before the backward pass; or None.
        counts: Whether the micro-batch counts; if not, it is there for other ranks' sake only.
        norms: The `BatchNorms` that synchronize those of the loss over ranks; or None.
        part: The part of an `fl.sequence` that runs, as a prefix of names: ``"generator/"``.
        differentiates: Whether gradients are wanted; if not, there are none.
        all_due: Whether all parts of a sequence are called, for an example of their metrics.
    """

    micro: int = 0
    autocast: torch.dtype | None = None
    modules: Any = static(default=None)
    scale: Any = None
    counts: bool = True
    norms: Any = static(default=None)
    part: str = ""
    differentiates: bool = True
    all_due: bool = False

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changes)
        return new

    def casting(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """A context manager: autocast on `device` to the dtype of `autocast`, if there is one."""
        return _NOTHING if self.autocast is None else casting(self.autocast, device)


def casting(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context manager: autocast on `device` to `dtype`; to float32, no autocast."""
    if dtype is torch.float32:
        return no_casting(device)
    return torch.autocast(device.type, dtype=dtype)


def no_casting(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context manager: no autocast on `device`, should the user have called a step in one."""
    if not is_casting() or not torch.amp.is_autocast_available(device.type):
        return _NOTHING
    return torch.autocast(device.type, enabled=False)


EMPTY = Context()
