"""What a stage passes down to the stages that it wraps, during one call."""

from __future__ import annotations

import contextlib
from typing import Any, Self

import torch

from fnloop._torch.tracing import casting
from fnloop.trees.nodes import static, tree

_NOTHING = contextlib.nullcontext()


@tree
class Context:
    """`State.context`: empty outside a call, and never saved.

    Attributes:
        micro: Index of the micro-batch; nested `fl.accumulate` stages count in one flat sequence.
        autocast: The autocast dtype of the model; None without `fl.amp`.
        scale: float32[]; the loss scale, applied before the backward pass; or None.
        counts: Whether the micro-batch counts; if not, it is there for other ranks' sake only.
        norms: The `BatchNorms` that synchronize those of the loss over ranks; or None.
        part: The part of an `fl.sequence` that runs, as a prefix of names: ``"generator/"``.
        differentiates: Whether gradients are wanted; if not, there are none.
        all_due: Whether all parts of a sequence are called, for an example of their metrics.
    """

    micro: int = 0
    autocast: torch.dtype | None = None
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
        if self.autocast is None:
            return _NOTHING
        return torch.autocast(device.type, dtype=self.autocast)


def no_casting(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context manager: no autocast on `device`, should the user have called a step in one."""
    if not casting() or not torch.amp.is_autocast_available(device.type):
        return _NOTHING
    return torch.autocast(device.type, enabled=False)


EMPTY = Context()
