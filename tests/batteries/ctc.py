"""CTC as an operation whose results have known shapes, so that it can be compiled.

The recipe of ``docs/how-to/compile.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ctc(scores: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
    """The sum of the CTC losses; examples whose target is too long for their frames count zero.

    Args:
        scores: Logarithms of probabilities: frames, examples, letters; the first is the blank.
        labels: Padded targets: int64[examples, letters].
        frames, lengths: The lengths of both: int64[examples].
    """
    losses, _ = _losses(scores, labels, frames, lengths)
    return torch.where(losses.isinf(), 0.0, losses).sum()


@torch.library.custom_op("fnloop_battery::ctc", mutates_args=())
def _losses(
    scores: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    about, blank = (labels, frames, lengths), 0
    losses, paths = torch.ops.aten._ctc_loss(scores, *about, blank, True)
    gradient = torch.ops.aten._ctc_loss_backward(
        torch.ones_like(losses), scores, *about, losses, paths, blank, True
    )
    return losses, gradient.contiguous()


@_losses.register_fake
def _(scores: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape[1]), scores.new_empty(scores.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, change: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return gradient * change[:, None], None, None, None


_losses.register_autograd(_backward, setup_context=_keep)
