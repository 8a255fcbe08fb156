"""``lanczos``: the spectrum of the loss's Hessian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.optim.vectors import joined, parted
from fnloop.schemes.curvatures import hessian_product
from fnloop.stages.base import GradStage
from fnloop.trees.nodes import tree
from fnloop.values.counts import as_count
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.state import State


@tree
class Spectrum:
    """What `lanczos` finds: for each start, values with weights.

    The outermost values are close to eigenvalues, from inside; together they are a quadrature of
    the density of all eigenvalues.

    Attributes:
        values: float64[draws, steps], in ascending order.
        weights: float64[draws, steps]; those of a start add up to one.
    """

    values: Tensor
    weights: Tensor

    def top(self, k: int = 1) -> Tensor:
        """The `k` largest eigenvalues, in descending order: float64[k].

        None of them is above the true one, so of several starts the largest is taken.
        """
        return self.values.amax(0).flip(0)[:k]

    def density(self, at: Tensor, width: Any) -> Tensor:
        """The density of the eigenvalues, smoothed by a normal distribution.

        Args:
            at: Where.
            width: Its standard deviation, such as a hundredth of the range of values.

        Returns:
            float64, in the shape of `at`. Its integral is one.
        """
        apart = (at.double()[..., None] - self.values.reshape(-1)) / width
        normal = torch.exp(-apart.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (normal * self.weights.reshape(-1)).sum(-1) / len(self.values)


@explained
def lanczos(
    stage: GradStage, state: State, batch: Any, steps: int = 20, draws: int = 1
) -> Spectrum:
    """Eigenvalues of the Hessian of the mean loss, and their density, by the Lanczos algorithm.

    The Hessian is never made: it takes ``steps * draws`` products (`fl.schemes.hessian_product`),
    each two to three times the work of a gradient, at the masks of dropout that it has. The density
    is that of stochastic Lanczos quadrature (Ghorbani et al., 2019,
    https://arxiv.org/abs/1901.10159, algorithm 1 and section 2), with every vector made orthogonal
    to all before it, which are kept: memory for `steps` gradients. Golub & Van Loan, *Matrix
    Computations*, section 10.1.

    The largest eigenvalues are found first, a few after 20 to 50 steps; a density takes 80 or so,
    and several starts.

    Args:
        stage: A gradient stage, such as ``fl.grad(loss)``.
        state: The state; its key and calls decide where the iteration starts.
        batch: The batch.
        steps: Number of products from each start; there are no more than parameters.
        draws: Number of random starts.

    Returns:
        A `fnloop.schemes.spectrum.Spectrum`.

    Raises:
        TypeError: `steps` or `draws` is not a whole number.
        ValueError: One of them is below 1, or `stage` is sharded.

    >>> import fnloop as fl
    >>> gradients = fl.grad(lambda model, batch: (batch * model.weight.square()).sum() / 2)
    >>> state = gradients.init(torch.nn.Linear(4, 1, bias=False))
    >>> found = lanczos(gradients, state, torch.tensor([[1.0, -4.0, 2.0, 9.0]]))
    >>> [round(value, 3) for value in found.values[0].tolist()], round(float(found.top()), 3)
    ([-4.0, 1.0, 2.0, 9.0], 9.0)
    >>> at = torch.linspace(-20, 20, 401)
    >>> print(f"{found.density(at, width=1.0).sum() * 0.1:.3f}")
    1.000
    """
    steps, draws = as_count(steps, "lanczos(steps=)", 1), as_count(draws, "lanczos(draws=)", 1)
    outline = stage(state, batch)[1].mean.wide()
    with randomness(state, "lanczos"):
        starts = [joined(outline.map_named(normal_like), outline) for _ in range(draws)]

    def product(vector: Tensor) -> Tensor:
        there = parted(vector, outline, outline)
        return joined(hessian_product(stage, state, batch, there).wide(), outline)

    found = [_from(start, product, min(steps, len(start))) for start in starts]
    values, vectors = torch.linalg.eigh(torch.stack(found))
    return Spectrum(values, vectors[:, 0].square())


def _from(start: Tensor, product: Any, steps: int) -> Tensor:
    """The tridiagonal matrix: float64[steps, steps]."""
    vector, scale = start / start.norm(), torch.zeros((), dtype=start.dtype, device=start.device)
    basis, diagonal, beside = list[Tensor](), list[Tensor](), list[Tensor]()
    for i in range(steps):
        basis.append(vector)
        every, new = torch.stack(basis), product(vector)
        diagonal.append(new @ vector)
        new = _orthogonal(new, every)
        norm = new.norm()
        scale = torch.maximum(scale, diagonal[-1].abs() + norm)
        # Where nothing is left but rounding, a whole invariant space has been found. A new random
        # vector goes on in the rest, which is not connected with it.
        ends = norm <= 10 * torch.finfo(norm.dtype).eps * math.sqrt(len(start)) * scale
        other = _orthogonal(start.roll(i + 1), every)
        vector = torch.where(ends, other / other.norm(), new / torch.where(ends, 1, norm))
        beside.append(torch.where(ends, 0, norm))
    middle, side = torch.stack(diagonal).double(), torch.stack(beside[:-1] or beside).double()
    if steps == 1:
        return torch.diag_embed(middle)
    return torch.diag_embed(middle) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """Without what lies in the space of the rows of `basis`; twice, for what rounding leaves."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector
