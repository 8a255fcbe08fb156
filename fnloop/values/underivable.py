"""Refuse a derivative where it is asked for, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def undifferentiated(tensor: Tensor, message: str, *others: Tensor) -> Tensor:
    """The tensor; a derivative that would go through it raises an error.

    Args:
        tensor: Any tensor.
        message: What the error says.
        *others: Tensors that it has been computed from, if it is detached from them.

    >>> x = torch.ones(2, requires_grad=True)
    >>> torch.autograd.grad(undifferentiated(x, "not this").sum(), x)
    Traceback (most recent call last):
    RuntimeError: not this
    """
    apply: Any = _Undifferentiated.apply
    return apply(tensor, message, *others)


class _Undifferentiated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, message: str, *others: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(ctx.message)
