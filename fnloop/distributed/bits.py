"""Small tensors of many dtypes as one row of integers, without loss, for one message."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def to_bits(leaves: Sequence[Tensor]) -> Tensor:
    """All values in one int64 row: integers and bools as they are, others as the bits of float64.

    >>> to_bits([torch.tensor([1, 2]), torch.tensor(True)])
    tensor([1, 2, 1])
    """
    return torch.cat([_bits(leaf.detach()) for leaf in leaves])


def from_bits(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in a row that `to_bits` made of tensors of these shapes and dtypes.

    >>> leaves = [torch.tensor(0.1), torch.tensor([3])]
    >>> from_bits(to_bits(leaves), leaves)
    [tensor(0.1000), tensor([3])]
    """
    sizes = [_width(leaf) for leaf in like]
    return [_leaf(bits, leaf) for bits, leaf in zip(row.split(sizes), like, strict=True)]


def _bits(leaf: Tensor) -> Tensor:
    if leaf.is_complex():
        leaf = torch.view_as_real(leaf.resolve_conj())
    if leaf.is_floating_point():
        return leaf.reshape(-1).to(torch.float64).view(torch.int64)
    return leaf.reshape(-1).to(torch.int64)


def _leaf(bits: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        pairs = bits.view(torch.float64).reshape(*like.shape, 2)
        return torch.view_as_complex(pairs).to(like.dtype)
    if like.is_floating_point():
        bits = bits.view(torch.float64)
    return bits.to(like.dtype).reshape(like.shape)


def _width(leaf: Tensor) -> int:
    return math.prod(leaf.shape) * (2 if leaf.is_complex() else 1)
