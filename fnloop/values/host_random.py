"""Python's and NumPy's random numbers, and generators that a model keeps: seeded, and put back."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from fnloop._torch.random import UNSIGNED
from fnloop.values.key import fold
from fnloop.values.numpy_state import NumpyState


class RandomSource(Protocol):
    """Something that random numbers are drawn from."""

    name: str

    def save(self) -> Any: ...

    def seed(self, seed: int) -> None: ...

    def restore(self, saved: Any) -> None: ...


class PythonSource:
    """Python's global generator, or a ``random.Random``."""

    def __init__(self, name: str, generator: Any = random) -> None:
        self.name, self._generator = name, generator

    def save(self) -> Any:
        return self._generator.getstate()

    def seed(self, seed: int) -> None:
        self._generator.seed(seed)

    def restore(self, saved: Any) -> None:
        self._generator.setstate(saved)


class NumpySource:
    """NumPy's global generator."""

    def __init__(self) -> None:
        self.name, self._state = "numpy.random", NumpyState()

    def save(self) -> Any:
        return self._state.save()

    def seed(self, seed: int) -> None:
        self._state.seed(seed >> 32)  # torch uses the low bits of the same seed

    def restore(self, saved: Any) -> None:
        self._state.restore(saved)


class RandomStateSource:
    """A ``numpy.random.RandomState`` of its own."""

    def __init__(self, name: str, generator: np.random.RandomState) -> None:
        self.name, self._generator = name, generator

    def save(self) -> Any:
        return self._generator.get_state(legacy=False)

    def seed(self, seed: int) -> None:
        self._generator.seed(seed >> 32)

    def restore(self, saved: Any) -> None:
        self._generator.set_state(saved)


class BitSource:
    """A ``numpy.random.Generator``."""

    def __init__(self, name: str, generator: np.random.Generator) -> None:
        self.name = name
        self._bits: Any = generator.bit_generator

    def save(self) -> Any:
        return self._bits.state

    def seed(self, seed: int) -> None:
        self._bits.state = type(self._bits)(seed).state

    def restore(self, saved: Any) -> None:
        self._bits.state = saved


class TorchSource:
    """A ``torch.Generator``."""

    def __init__(self, name: str, generator: torch.Generator) -> None:
        self.name, self._generator = name, generator

    def save(self) -> Any:
        return self._generator.get_state()

    def seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def restore(self, saved: Any) -> None:
        self._generator.set_state(saved)


GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""The kinds of generators that a model may keep."""


def source_of(name: str, generator: Any) -> RandomSource:
    """How to seed and put back a generator of one of the kinds in `GENERATORS`."""
    if isinstance(generator, torch.Generator):
        return TorchSource(name, generator)
    if isinstance(generator, random.Random):
        return PythonSource(name, generator)
    if isinstance(generator, np.random.RandomState):
        return RandomStateSource(name, generator)
    return BitSource(name, generator)


GLOBAL: tuple[RandomSource, ...] = (PythonSource("random"), NumpySource())
"""Python's and NumPy's global generators."""


class host_seeded:
    """A context manager that seeds sources of random numbers, and puts them back.

    The seed is the one that torch's generator was last seeded with, which stages take from the
    state, so that the numbers are a function of the state's key and calls.

    Attributes:
        drew: After the block, names of the sources that were drawn from, without torch's.

    >>> with torch.random.fork_rng():
    ...     _ = torch.manual_seed(0)
    ...     with host_seeded(GLOBAL) as first:
    ...         x = random.random()
    ...     with host_seeded(GLOBAL) as second:
    ...         print(random.random() == x)
    True
    >>> first.drew
    ['random']
    """

    def __init__(self, sources: Sequence[RandomSource]) -> None:
        self._sources = sources
        self.drew: list[str] = []

    def __enter__(self) -> host_seeded:
        seed = torch.initial_seed()
        self._saved = [source.save() for source in self._sources]
        try:
            for i, source in enumerate(self._sources):
                source.seed(fold(seed, i) & UNSIGNED)
            self._seeded = [source.save() for source in self._sources]
        except BaseException:  # from a signal handler; so the rest, too
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.drew += self._drawn()  # a function: its loop would not be part of the `try`
        finally:
            try:
                self._restore()
            except BaseException:
                self._restore()
                raise

    def _drawn(self) -> list[str]:
        pairs = zip(self._sources, self._seeded, strict=True)
        return [source.name for source, seeded in pairs if not same(source.save(), seeded)]

    def _restore(self) -> None:
        for source, saved in zip(self._sources, self._saved, strict=True):
            source.restore(saved)


def same(a: Any, b: Any) -> bool:
    """Whether two states of a generator are equal."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and all(same(value, b.get(key)) for key, value in a.items())
    if isinstance(a, torch.Tensor):
        return True  # draws from a torch.Generator are seen where torch's random numbers are
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)
