"""``pcgrad``: gradients of several losses, without what conflicts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.optim.vectors import joined
from fnloop.schemes.several_losses import Several, as_parts_of
from fnloop.stages.base import GradStage
from fnloop.trees.nodes import tree
from fnloop.values.randomness import randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class PcGrad(Several):
    """The stage that `pcgrad` makes."""

    label: ClassVar[str] = "pcgrad"

    def combined(self, state: State, means: Sequence[Tensors]) -> Tensors:
        whole = [mean.whole() for mean in means]
        vectors = torch.stack([joined(mean, whole[0]) for mean in whole])
        n = len(means)
        if n > 2:
            with randomness(state, "pcgrad"):
                order = torch.rand(n, n, device=vectors.device).argsort(1)
        else:
            order = torch.arange(n, device=vectors.device).expand(n, n)
        shares = projected(vectors @ vectors.T, order).sum(0).unbind()
        scaled = [mean.scale(share) for mean, share in zip(means, shares, strict=True)]
        return functools.reduce(Tensors.add, scaled)


def projected(products: Tensor, order: Tensor) -> Tensor:
    """What each gradient is after all projections, in terms of the gradients.

    Args:
        products: ``[n, n]``; the inner products of the gradients.
        order: ``[n, n]`` int64; the others in turn, for each gradient. Itself is passed over.

    Returns:
        ``[n, n]``; a row of factors for each gradient.

    >>> projected(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.tensor([[0, 1], [0, 1]]))
    tensor([[1.0000, 0.2500],
            [1.0000, 1.0000]])
    """
    n = len(products)
    own = torch.arange(n, device=products.device)
    squares = products.diagonal()
    shares = torch.eye(n, dtype=products.dtype, device=products.device)
    for others in order.unbind(1):
        product = (shares @ products).gather(1, others[:, None])[:, 0]
        conflicts = (product < 0) & (others != own)
        square = torch.where(conflicts, squares[others], torch.ones_like(product))
        factor = torch.where(conflicts, product / square, torch.zeros_like(product))
        shares = shares - factor[:, None] * (others[:, None] == own)
    return shares


def pcgrad(**parts: Callable[..., Any] | GradStage) -> PcGrad:
    """Gradient surgery (PCGrad): several losses whose gradients do not undo each other.

    Yu et al., 2020 (https://arxiv.org/abs/2001.06782, algorithm 1). From the gradient of each loss
    its projection on that of every other loss is subtracted where the two point in opposite
    directions, the others in random order; then all are added.

    The first stage of a pipeline, in place of a loss and `fl.grad`: ``fl.pipe(pcgrad(depth=loss,
    normals=other), fl.update(optimizer))``. With `fl.accumulate` directly behind it, and on ranks,
    the gradients of the whole batch are projected. Otherwise like `fl.schemes.several`, which adds
    the gradients as they are.

    Args:
        **parts: Losses or gradient stages without memory, by name.

    Raises:
        TypeError: A part is neither, or there is none.
        ValueError: A part keeps memory.

    >>> import torch, fnloop as fl
    >>> gradients = pcgrad(
    ...     a=lambda model, batch: model.weight[0, 0],
    ...     b=lambda model, batch: 2 * model.weight[0, 1] - model.weight[0, 0],
    ... )
    >>> _, grads = gradients(gradients.init(torch.nn.Linear(2, 1, bias=False)), torch.ones(1))
    >>> grads.mean["weight"]  # [1, 0] is [0.8, 0.4] beside [-1, 2], which is [0, 2] beside [1, 0]
    tensor([[0.8000, 2.4000]])
    """
    return PcGrad(as_parts_of("pcgrad", parts), tuple(parts))
