"""The inverse Hessian of L-BFGS: what the last moves have told of it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fnloop.values.choice import choose
from fnloop.values.looking import look


class Curvature(NamedTuple):
    """Pairs of a move and of the change of the gradient along it, the newest last.

    Places that are not yet filled are zeros, which add nothing to a product.

    Attributes:
        moves: ``[m, n]``
        changes: ``[m, n]``
        inverses: ``[m]``; of the product of both, 0 in an empty place.
        scale: 0-d; the inverse Hessian before all pairs is this times the identity.
        filled: int64[]; how many pairs there are.
    """

    moves: Tensor
    changes: Tensor
    inverses: Tensor
    scale: Tensor
    filled: Tensor

    @classmethod
    def empty(cls, size: int, like: Tensor) -> Self:
        """Room for `size` pairs of vectors like one."""
        pairs = like.new_zeros(size, like.numel())
        count = torch.zeros((), dtype=torch.int64, device=like.device)
        return cls(pairs, pairs.clone(), like.new_zeros(size), like.new_ones(()), count)

    def taught(self, move: Tensor, change: Tensor) -> Curvature:
        """With another pair, in place of the oldest one if there is no room.

        Left out if the slope did not rise along the move: the matrix would not be positive.
        """
        product = change @ move
        rose = product > 1e-10
        one = torch.ones_like(product)
        product = torch.where(rose, product, one)
        square = torch.where(rose, change @ change, one)

        def added() -> Curvature:
            return Curvature(
                torch.cat([self.moves[1:], move[None]]),
                torch.cat([self.changes[1:], change[None]]),
                torch.cat([self.inverses[1:], (1 / product)[None]]),
                product / square,
                (self.filled + 1).clamp(max=len(self.inverses)),
            )

        return choose(look(rose), added, lambda: self)

    def times(self, vector: Tensor) -> Tensor:
        """The inverse Hessian times a vector, by two loops (algorithm 7.4 of Nocedal & Wright)."""
        filled: Any = look(self.filled)
        pairs = self.moves.unbind(), self.changes.unbind(), self.inverses.unbind()
        known = list(zip(*pairs, strict=True))
        if not isinstance(filled, Tensor):
            known = known[len(known) - filled :]
        shares: list[Tensor] = []
        for move, change, inverse in reversed(known):
            shares.append((move @ vector) * inverse)
            vector = torch.addcmul(vector, shares[-1], change, value=-1)
        vector = vector * self.scale
        for (move, change, inverse), share in zip(known, reversed(shares), strict=True):
            vector = torch.addcmul(vector, share - (change @ vector) * inverse, move)
        return vector
