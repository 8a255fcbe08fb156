"""A shuffle that is a function: where position i of an epoch lands, without a table."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fnloop.values.key import fold

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # SplitMix64's


def permute(positions: Tensor, n: int, seed: int, epoch: int = 0) -> Tensor:
    """Where the shuffle of ``range(n)`` that (seed, epoch) selects puts each position.

    A Feistel network over the pairs ``(i // b, i % b)``, where ``a * b`` is `n` or a little more,
    with cycle walking for what falls outside: Black & Rogaway, "Ciphers with arbitrary finite
    domains" (2002), section 5. Constant memory, every position by itself, any `n`.

    Args:
        positions: int64 of any shape on the CPU, each in ``range(n)``.
        n: Examples, at most 2**62.
        seed: Any integer.
        epoch: Each epoch has its own order.

    Returns:
        int64 of the same shape; over all positions, each of ``range(n)`` once.

    >>> sorted(permute(torch.arange(10), 10, seed=0).tolist()) == list(range(10))
    True
    """
    values = positions.numpy().astype(np.uint64)
    flat = values.reshape(-1)
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    rounds = 8 if n > 256 else 16  # a small domain mixes less in a round
    keys = [np.uint64(fold(seed, epoch, r) & (1 << 64) - 1) for r in range(rounds)]
    outside = slice(None)
    while True:
        flat[outside] = _rounds(flat[outside], a, b, keys)
        outside = np.flatnonzero(flat >= n)
        if not outside.size:
            return torch.from_numpy(values.view(np.int64))


def _rounds(values: np.ndarray, a: int, b: int, keys: list[np.uint64]) -> np.ndarray:
    """One pass of the network over ``range(a * b)``."""
    halves = list(np.divmod(values, np.uint64(b)))
    sizes = (np.uint64(a), np.uint64(b))
    for r, key in enumerate(keys):
        side = r % 2
        mixed = halves[1 - side] ^ key
        for multiplier in _MULTIPLIERS:
            mixed *= np.uint64(multiplier)
            mixed ^= mixed >> np.uint64(32)
        # Lemire's reduction: 32 random bits to range(size), without a division.
        mixed &= np.uint64(0xFFFFFFFF)
        mixed *= sizes[side]
        mixed >>= np.uint64(32)
        mixed += halves[side]
        # Below twice the size, so that a subtraction that wraps around loses to the sum.
        halves[side] = np.minimum(mixed, mixed - sizes[side])
    return halves[0] * np.uint64(b) + halves[1]
