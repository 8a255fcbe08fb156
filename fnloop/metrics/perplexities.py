"""Perplexity."""

from __future__ import annotations

from typing import ClassVar, overload

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fnloop.metrics.label_layout import check_tensors
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.metrics import Mean, as_tensor


@tree
class Perplexity(Mean):
    """The exponential of a mean negative log-likelihood (in nats)."""

    stacks: ClassVar[bool] = True

    def value(self) -> Tensor:
        return as_tensor(super().value(), torch.device("cpu")).exp()


@overload
def perplexity(logits: Mean, /) -> Perplexity: ...
@overload
def perplexity(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Perplexity: ...
def perplexity(
    logits: Tensor | Mean, targets: Tensor | None = None, ignore_index: int = -100
) -> Perplexity:
    """The perplexity of a language model. Merging batches of different sizes is exact.

    Args:
        logits: float[N, C, ...], as for ``cross_entropy``; or the loss as an `fl.Mean` of the
            negative log-likelihood in nats over tokens.
        targets: int64[N, ...].
        ignore_index: Targets of this value are ignored.

    Raises:
        TypeError: `targets` is missing for logits.

    >>> float(perplexity(Mean(torch.tensor(0.0), 7)))
    1.0
    >>> round(float(perplexity(torch.zeros(2, 10), torch.tensor([3, 4]))), 4)
    10.0
    """
    if isinstance(logits, Mean):
        return Perplexity(_detached(logits.total), _detached(logits.weight))
    if targets is None:
        raise TypeError(f"perplexity takes logits and targets, or an fl.Mean; got {short(logits)}.")
    check_tensors(logits, targets)
    ignore_index = as_count(ignore_index, "ignore_index=", None)
    # Compute log-softmax in float32 or wider.
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    total = cross_entropy(wide, targets, ignore_index=ignore_index, reduction="sum")
    return Perplexity(total.double(), (targets != ignore_index).sum(dtype=torch.float64))


def _detached(number: float | Tensor) -> float | Tensor:
    return number.detach() if isinstance(number, Tensor) else number
