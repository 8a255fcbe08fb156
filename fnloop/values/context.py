"""What stages tell those that they wrap, during a call."""

from __future__ import annotations

import contextlib
from typing import Any, Self

import torch

from fnloop.trees.nodes import tree


@tree
class Context:
    """`State.context`: empty outside a call, and never saved.

    Attributes:
        micro: The number of the logical micro-batch, counted in one flat cut of the batch.
        autocast: The dtype that the model runs in; None without `fl.amp`.
        scale: float32[]; what the loss is multiplied by before the backward pass, or None.
    """

    micro: int = 0
    autocast: torch.dtype | None = None
    scale: Any = None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changes)
        return new

    def casting(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Within the block, a model on `device` runs in the dtype of `autocast`, if any."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


EMPTY = Context()
