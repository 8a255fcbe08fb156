"""Solve ``matrix @ x = b`` by products with the matrix, which is symmetric."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fnloop.values.looking import look
from fnloop.values.tensors import Tensors


def conjugate_gradients(
    product: Callable[[Tensors], Tensors], b: Tensors, steps: int, tolerance: float
) -> Tensors:
    """The solution by conjugate gradients (Hestenes & Stiefel, 1952), for a positive matrix.

    Exact after as many steps as there are different eigenvalues, but for rounding.

    Args:
        product: The matrix times something.
        b: The right side.
        steps: The most products.
        tolerance: It ends where what is left of `b` is smaller by this factor.

    Returns:
        The solution; nan where numbers cannot be looked at and the matrix is not positive.

    Raises:
        ValueError: The matrix is not positive.

    >>> diagonal = Tensors({"w": torch.tensor([2.0, 4.0])})
    >>> conjugate_gradients(diagonal.mul, Tensors({"w": torch.ones(2)}), 2, 1e-6)["w"]
    tensor([0.5000, 0.2500])
    """
    x, left, way = b.zeros(), b, b
    size = left.dot(left)
    enough = tolerance**2 * size
    for _ in range(steps):
        done = look(size <= enough)
        if done is True:
            break
        moved = product(way)
        slope = way.dot(moved)
        if look(slope <= 0) is True:
            raise ValueError(_NEGATIVE)
        length = torch.where(slope > 0, size / slope, torch.nan)
        if done is not False:
            length = torch.where(done, 0.0, length)
        x, left = x.add(way.scale(length)), left.sub(moved.scale(length))
        before, size = size, left.dot(left)
        way = left.add(way.scale(size / torch.where(before > 0, before, 1.0)))
    return x


def neumann_series(
    product: Callable[[Tensors], Tensors], b: Tensors, steps: int, rate: float
) -> Tensors:
    """The solution by ``rate * sum of (1 - rate * matrix) ** k @ b``, for k from 0 to `steps`.

    It converges if `rate` is below 2 over the largest eigenvalue.

    >>> diagonal = Tensors({"w": torch.tensor([2.0, 4.0])})
    >>> neumann_series(diagonal.mul, Tensors({"w": torch.ones(2)}), 20, 0.3)["w"]
    tensor([0.5000, 0.2500])
    """
    total = term = b
    for _ in range(steps):
        term = term.sub(product(term).scale(rate))
        total = total.add(term)
    return total.scale(rate)


_NEGATIVE = (
    "implicit has met a direction in which the loss does not curve upwards: the state is no "
    "minimum of it. The usual causes are a loss without a regularizer, another batch than that of "
    "the training, or too few steps. Train on, or give damping= a value above the size of the "
    "negative eigenvalue (fl.schemes.sharpness)."
)
