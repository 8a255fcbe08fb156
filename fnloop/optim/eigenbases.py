"""The eigenbases of a gradient's products with itself, one for each axis of a tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def product(tensor: Tensor, axis: int) -> Tensor:
    """The inner products of a tensor's slices along one axis: ``[n, n]``.

    >>> product(torch.tensor([[1.0, 0.0], [2.0, 1.0]]), axis=0)
    tensor([[1., 2.],
            [2., 5.]])
    """
    rows = tensor.movedim(axis, 0).flatten(1)
    return rows @ rows.T


def turned(tensor: Tensor, bases: Mapping[int, Tensor], back: bool = False) -> Tensor:
    """The tensor's coordinates in some bases, whose columns are vectors; `back` is the inverse."""
    for axis, basis in bases.items():
        found = tensor.movedim(axis, -1) @ (basis.T if back else basis)
        tensor = found.movedim(-1, axis)
    return tensor


def eigenbasis(matrix: Tensor) -> Tensor:
    """The eigenvectors of a symmetric matrix as columns, from the largest eigenvalue down."""
    # A step that is going to be skipped has values for which no basis can be found.
    exact = matrix.double().nan_to_num(0.0, 0.0, 0.0)
    return torch.linalg.eigh(exact).eigenvectors.flip(-1).to(matrix.dtype).contiguous()


def improved(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """An approximate eigenbasis after one power iteration (Vyas et al., 2024, algorithm 4).

    Returns:
        The new basis, and the order in which the old vectors have become the new ones, int64[n]:
        the one of the largest eigenvalue comes first.
    """
    values = (basis * (matrix @ basis)).sum(0)
    order = values.argsort(descending=True)
    found = torch.linalg.qr(matrix @ reordered(basis, order, 1)).Q
    return found.contiguous(), order  # LAPACK stores columns, and a state keeps its strides


def reordered(tensor: Tensor, order: Tensor, axis: int) -> Tensor:
    """The slices of a tensor along one axis in another order."""
    shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
    return torch.take_along_dim(tensor, order.view(shape), axis)
