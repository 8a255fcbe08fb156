"""Counter-based randomness: a function of the key and a position, without generator state."""

from __future__ import annotations

import functools
import hashlib

_MASK = (1 << 64) - 1


def fold(key: int, *positions: int | str) -> int:
    """Derive a 64-bit key from `key` and a position (step, micro-batch, name, ...).

    For each position: multiply the key by the golden ratio constant, add the position, and apply
    SplitMix64's finalizer (Steele, Lea & Flood, 2014). A name counts as its 64-bit BLAKE2b digest.

    Args:
        key: Any integer; its low 64 bits are used.
        positions: Integers or names.

    Returns:
        A signed 64-bit integer, ready for an int64 tensor.

    >>> fold(0, 1, 2) == fold(0, 1, 2), fold(0, 1, 2) == fold(0, 2, 1)
    (True, False)
    """
    z = key
    for position in positions:
        if isinstance(position, str):
            position = _digest(position)
        z = (z * 0x9E3779B97F4A7C15 + position + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z


@functools.lru_cache(maxsize=256)
def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
