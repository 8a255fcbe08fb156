"""Save and restore the state of numpy's global generator in a few microseconds."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_RANDOM: Any = np.random  # numpy's types lack `get_bit_generator`
_SIZE = 625 * 4  # bytes; Mersenne Twister: 624 words and the position


class NumpyState:
    """A fast version of ``np.random.get_state`` and ``set_state``, which take 165 us together.

    numpy copies word by word. This copies the memory at the address that numpy exposes for ctypes.
    It falls back to numpy's functions if the memory layout is not the expected one, or if the user
    has set another bit generator.
    """

    def __init__(self) -> None:
        self._generator: Any = None
        self._memory: Any = None
        self._restored = self._seeded = b""  # the memory, as it was last left by those

    def save(self) -> Any:
        """The current state, for `restore`."""
        generator = _RANDOM.get_bit_generator()
        if generator is not self._generator:
            self._generator, self._memory = generator, _memory(generator)
            self._restored = self._seeded = b""
        if self._memory is None:
            return np.random.get_state(legacy=False)
        memory: bytes = self._memory.raw
        # Normal numbers are made in pairs, and the second is cached outside that memory. Just after
        # `restore` or `seed` none is cached, and caching one would have changed the memory.
        if memory in (self._restored, self._seeded):
            return memory
        state: Any = np.random.get_state(legacy=False)
        return state if state["has_gauss"] else memory

    def seed(self, seed: int) -> None:
        """Seed the generator with the low 32 bits of `seed`. Only for the Mersenne Twister."""
        generator = _RANDOM.get_bit_generator()
        if isinstance(generator, np.random.MT19937):  # numpy cannot seed others
            np.random.seed(seed & 0xFFFFFFFF)
            if generator is self._generator and self._memory is not None:
                self._seeded = self._memory.raw

    def restore(self, saved: Any) -> None:
        """Restore a state from `save`."""
        if isinstance(saved, bytes) and self._memory is not None:
            if self._memory.raw != self._seeded:
                np.random.seed(0)  # drops a cached normal number
            with self._generator.lock:
                self._memory.raw = saved
            self._restored = saved
        else:
            _RANDOM.set_state(saved)


def _memory(generator: Any) -> Any:
    """The state as an array of characters; None if its layout is not the expected one."""
    if not isinstance(generator, np.random.MT19937):
        return None
    memory = (ctypes.c_char * _SIZE).from_address(generator.ctypes.state_address)
    state: Any = generator.state["state"]
    expected = state["key"].tobytes() + np.int32(state["pos"]).tobytes()
    return memory if memory.raw == expected else None
