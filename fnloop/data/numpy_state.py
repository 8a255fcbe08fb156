"""numpy's global generator, kept and put back in a few microseconds."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_RANDOM: Any = np.random  # numpy's types lack `get_bit_generator`
_SIZE = 625 * 4  # Mersenne Twister: 624 words and the position among them


class NumpyState:
    """What ``np.random.get_state`` and ``set_state`` do, which take 165 us together.

    They copy word by word. Here the memory is copied, at the address that numpy gives out for
    ctypes; where that is not laid out as it was when this was written, or where the user has set
    another bit generator, numpy's own functions are used.
    """

    def __init__(self) -> None:
        self._generator: Any = None
        self._address: int | None = None
        self._plain: bytes | None = None

    def save(self) -> Any:
        """The present state, for `restore`."""
        generator = _RANDOM.get_bit_generator()
        if generator is not self._generator:
            self._generator, self._address, self._plain = generator, _address(generator), None
        if self._address is None:
            return np.random.get_state(legacy=False)
        memory = ctypes.string_at(self._address, _SIZE)
        # Normal numbers come in pairs, and the second waits outside that memory. None waited when
        # `restore` left this very memory, and making one would have changed it.
        if memory == self._plain:
            return memory
        state: Any = np.random.get_state(legacy=False)
        return state if state["has_gauss"] else memory

    def seed(self, seed: int) -> None:
        """Start from `seed`, its low 32 bits."""
        if isinstance(_RANDOM.get_bit_generator(), np.random.MT19937):  # numpy can seed no other
            np.random.seed(seed & 0xFFFFFFFF)

    def restore(self, saved: Any) -> None:
        """Put the state that `save` gave back."""
        if isinstance(saved, bytes) and self._address is not None:
            np.random.seed(0)  # forgets a normal number that waits
            with self._generator.lock:
                ctypes.memmove(self._address, saved, _SIZE)
            self._plain = saved
        else:
            _RANDOM.set_state(saved)


def _address(generator: Any) -> int | None:
    """Where the state is, if it is laid out as expected."""
    if not isinstance(generator, np.random.MT19937):
        return None
    address: int = generator.ctypes.state_address
    state: Any = generator.state["state"]
    expected = state["key"].tobytes() + np.int32(state["pos"]).tobytes()
    return address if ctypes.string_at(address, _SIZE) == expected else None
