"""A shuffle computed position by position, without a table of the order."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.key import fold

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64's
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_WORTH = 8  # positions for each value of a half from which on tables are faster


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
    if not isinstance(positions, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"permute(positions=...) takes a tensor int64, got {short(positions)}.")
    n, epoch = as_count(n, "permute(n=...)", 1), as_count(epoch, "permute(epoch=...)")
    return permute_epochs(positions, n, as_count(seed, "permute(seed=...)", None), (epoch,))[0]


def permute_epochs(positions: Tensor, n: int, seed: int, epochs: Sequence[int]) -> Tensor:
    """`permute` for several epochs at once; for short epochs it takes little longer than for one.

    Returns:
        int64 of shape ``[len(epochs), *positions.shape]``.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    rounds = range(8 if n > 256 else 16)  # a round mixes a small domain less
    roots = [fold(seed, epoch) for epoch in epochs]
    keys = np.array([[fold(root, r) & (1 << 64) - 1 for root in roots] for r in rounds], np.uint64)
    values = positions.numpy().reshape(-1)
    many = values.size >= _WORTH * a
    network = _Tables(a, b, keys) if many else functools.partial(_rounds, a, b, keys)
    shape = (len(roots), values.size)
    result = network(np.broadcast_to(values, shape), np.arange(len(roots))[:, None]).reshape(-1)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = network(result[outside], outside // values.size)
        outside = outside[result[outside] >= n]
    return torch.from_numpy(result).view(len(roots), *positions.shape)


def _rounds(a: int, b: int, keys: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One pass of the network over ``range(a * b)``.

    Args:
        keys: uint64[rounds, epochs].
        values: int64 of any shape.
        rows: Which of the epochs each value belongs to.
    """
    halves = _divided(values.view(np.uint64), np.uint64(b))
    sizes = (np.uint64(a), np.uint64(b))
    mixed, spare = np.empty_like(halves[0]), np.empty_like(halves[0])  # buffers for all rounds
    for r, key in enumerate(keys):
        half, other, size = halves[r % 2], halves[1 - r % 2], sizes[r % 2]
        _mix(other, key[rows], size, mixed, spare)
        mixed += half
        # The sum is below 2 * size. Below size, the unsigned subtraction wraps to a large number,
        # so the minimum is the sum modulo size.
        np.minimum(mixed, np.subtract(mixed, size, out=spare), out=half)
    return (halves[0] * sizes[1] + halves[1]).view(np.int64)


def _mix(
    half: np.ndarray, keys: np.ndarray, size: Any, mixed: np.ndarray, spare: np.ndarray
) -> None:
    """Write random numbers below `size`, functions of the half and the key, to `mixed`."""
    np.bitwise_xor(half, keys, out=mixed)
    for multiplier in _MULTIPLIERS:
        mixed *= multiplier
        mixed ^= np.right_shift(mixed, _32, out=spare)
    # Lemire's reduction: 32 random bits to range(size), without a division.
    mixed &= _LOW
    mixed *= size
    mixed >>= _32


class _Tables:
    """The same as `_rounds`, with what a round adds to one half in a table, by the other half.

    The halves are reduced modulo their sizes only at the end: the tables are periodic.
    """

    def __init__(self, a: int, b: int, keys: np.ndarray) -> None:
        self._sizes = np.uint64(a), np.uint64(b)
        sizes = np.resize(self._sizes, (len(keys), 1, 1))  # a, b, a, b, ...
        mixed = np.empty((*keys.shape, a), np.uint64)
        _mix(np.arange(a, dtype=np.uint64), keys[:, :, None], sizes, mixed, np.empty_like(mixed))
        periods = 1 + len(keys) // 2  # a half grows in every second round
        even = np.concatenate([mixed[::2, :, :b]] * periods, axis=-1)
        odd = np.concatenate([mixed[1::2]] * periods, axis=-1)
        self._tables = [table for pair in zip(even, odd, strict=True) for table in pair]

    def __call__(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        halves = _divided(values.view(np.uint64), self._sizes[1])
        added = np.empty_like(halves[0])
        for r, table in enumerate(self._tables):
            half, other = halves[r % 2], halves[1 - r % 2].view(np.int64)
            index = other if len(table) == 1 else other + rows * table.shape[1]
            half += table.take(index, out=added, mode="clip")  # all are inside; to look is slower
        left, right = (_divided(halves[k], self._sizes[k])[1] for k in (0, 1))
        left *= self._sizes[1]
        left += right
        return left.view(np.int64)


def _divided(values: np.ndarray, by: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """As ``np.divmod``, and three times as fast."""
    quotient = values // by
    return quotient, values - quotient * by
