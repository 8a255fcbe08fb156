"""All parameters as one vector, for optimizers that take products of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from fnloop.values.tensors import Tensors


def joined(tensors: Tensors, outline: Tensors) -> Tensor:
    """The values of tensors one after the other, in the order of the names of `outline`.

    Args:
        tensors: Whole ones, float32 or wider. A name that is missing counts as zeros.
        outline: Tensors of all names, for their shapes; complex ones are two numbers a value.

    Returns:
        A vector in the widest of the dtypes, at least float32.

    >>> params = Tensors({"w": torch.ones(2), "b": torch.ones(1)})
    >>> joined(Tensors({"b": torch.tensor([3.0])}), params)
    tensor([0., 0., 3.])
    """
    wide = torch.promote_types(torch.float32, functools.reduce(torch.promote_types, outline.dtypes))
    parts = [tensors[n] if n in tensors else torch.zeros_like(p) for n, p in outline.items()]
    return torch.cat([_real(part).reshape(-1).to(wide) for part in parts])


def parted(vector: Tensor, outline: Tensors, names: Iterable[str]) -> Tensors:
    """The inverse of `joined`: the tensors `names` of a vector, in the vector's dtype."""
    wanted, found = set(names), dict[str, Tensor]()
    shapes = [_real(p).shape for _, p in outline.items()]
    parts = vector.split([shape.numel() for shape in shapes])
    for (name, p), part, shape in zip(outline.items(), parts, shapes, strict=True):
        if name in wanted:
            own = part.reshape(shape)
            # A copy, as the pairs of numbers may begin at an odd place.
            found[name] = torch.view_as_complex(own.clone()) if p.is_complex() else own
    return Tensors(found)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
