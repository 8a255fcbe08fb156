"""The error for a tensor of a state that becomes one of another shape, dtype or device."""

from __future__ import annotations

from torch import Tensor

from fnloop.trees.show import short


class ChangedKindError(ValueError):
    """A tensor is to be chosen from two of different shapes or dtypes."""

    def __init__(self, what: str, was: Tensor, now: Tensor) -> None:
        super().__init__(changed_kind(what, was, now))


def changed_kind(what: str, was: Tensor, now: Tensor) -> str:
    """What to say of a tensor that was of another kind before the step."""
    return (
        f"The step makes {short(now)} of {what}, which was {short(was)}. A state keeps its shapes, "
        "dtypes and devices from step to step: make the memory so from the beginning, in "
        "init_state(state) or register_buffer(...), or convert back (x.to(old.dtype)). Of a "
        "hidden state, one batch smaller than the others is the usual cause: drop it "
        "(drop_last=True), or write to the part that it has rows for (self.h[: len(h)] = h). "
        "Neither compiled nor vmapped, the step runs on the CPU as it is."
    )
