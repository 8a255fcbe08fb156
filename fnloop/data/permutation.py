"""A shuffle computed position by position, without a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fnloop.values.key import fold

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64's
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def permute(positions: Tensor, n: int, seed: int, epoch: int = 0) -> Tensor:
    """Map positions by the random permutation of ``range(n)`` that (seed, epoch) selects.

    A Feistel network on the pairs ``(i // b, i % b)``, where ``a * b`` is `n` or slightly more;
    results outside ``range(n)`` are mapped again (cycle walking). Black & Rogaway, "Ciphers with
    arbitrary finite domains" (2002), section 5. Each position is computed independently, in
    constant memory, for any `n`.

    Args:
        positions: int64 of any shape on the CPU, each in ``range(n)``.
        n: Number of examples, at most 2**62.
        seed: Any integer.
        epoch: Each epoch has its own order.

    Returns:
        int64 of the same shape. All positions together give each of ``range(n)`` once.

    >>> sorted(permute(torch.arange(10), 10, seed=0).tolist()) == list(range(10))
    True
    """
    return permute_epochs(positions, n, seed, (epoch,))[0]


def permute_epochs(positions: Tensor, n: int, seed: int, epochs: Sequence[int]) -> Tensor:
    """`permute` for several epochs at once; for short epochs it takes little longer than for one.

    Returns:
        int64 of shape ``[len(epochs), *positions.shape]``.
    """
    flat = positions.numpy().astype(np.uint64).reshape(-1)
    values = np.tile(flat, (len(epochs), 1))
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    rounds = range(8 if n > 256 else 16)  # a round mixes a small domain less
    keys = np.array([[fold(seed, e, r) & (1 << 64) - 1 for e in epochs] for r in rounds], np.uint64)
    values = _rounds(values, a, b, keys[:, :, None])
    result = values.reshape(-1)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _rounds(result[outside], a, b, keys[:, outside // flat.size])
        outside = outside[result[outside] >= n]
    return torch.from_numpy(result.view(np.int64)).view(len(epochs), *positions.shape)


def _rounds(values: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    """One pass of the network over ``range(a * b)``; `keys` has one row per round."""
    halves = np.divmod(values, np.uint64(b))
    sizes = (np.uint64(a), np.uint64(b))
    mixed, spare = np.empty_like(values), np.empty_like(values)  # buffers for all rounds
    for r, key in enumerate(keys):
        half, other, size = halves[r % 2], halves[1 - r % 2], sizes[r % 2]
        np.bitwise_xor(other, key, out=mixed)
        for multiplier in _MULTIPLIERS:
            mixed *= multiplier
            mixed ^= np.right_shift(mixed, _32, out=spare)
        # Lemire's reduction: 32 random bits to range(size), without a division.
        mixed &= _LOW
        mixed *= size
        mixed >>= _32
        mixed += half
        # The sum is below 2 * size. Below size, the unsigned subtraction wraps to a large number,
        # so the minimum is the sum modulo size.
        np.minimum(mixed, np.subtract(mixed, size, out=spare), out=half)
    return halves[0] * sizes[1] + halves[1]
