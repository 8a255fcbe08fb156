"""Seed the global generators, so that an example's random numbers depend on its index only."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from fnloop._torch.process_wide import ProcessWide
from fnloop._torch.random import UNSIGNED
from fnloop.values.key import fold
from fnloop.values.numpy_state import NumpyState
from fnloop.values.python_state import PythonState

_TORCH = torch.default_generator
_PYTHON, _NUMPY = PythonState(), NumpyState()


class seeding(ProcessWide):
    """A context manager that seeds torch's CPU generator, Python's and numpy's global ones.

    On exit it restores their state. They are global to the process, so a lock lets in one thread at
    a time. It takes 9 us.
    """

    __slots__ = ("_numpy", "_python", "_seed", "_torch")

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def save(self) -> None:
        self._torch = _TORCH.get_state()
        self._python = _PYTHON.save()
        self._numpy = _NUMPY.save()

    def change(self) -> None:
        reseed(self._seed)

    def restore(self) -> None:
        _TORCH.set_state(self._torch)
        _PYTHON.restore(self._python)
        _NUMPY.restore(self._numpy)


def reseed(seed: int) -> None:
    """Seed torch's CPU generator, Python's and numpy's, in 6 us.

    torch uses the low 32 bits of `seed` and numpy gets the high ones: both are Mersenne Twisters,
    and would draw the same numbers from the same seed.
    """
    seed &= UNSIGNED
    _TORCH.manual_seed(seed)
    random.seed(seed)
    _NUMPY.seed(seed >> 32)


def drawn(seed: int) -> bool:
    """Whether random numbers were drawn since `reseed(seed)`; if none was, nothing is changed.

    One 64-bit number of torch's does not count: a ``DataLoader`` draws it each time that it is
    started, for its workers.
    """
    found = _states()
    reseed(seed)
    if found == _states():
        return False
    torch.empty((), dtype=torch.int64).random_()
    return found != _states()


def _states() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    key, *rest = state[1:]
    return _TORCH.get_state().numpy().tobytes(), random.getstate(), bytes(key), *rest


def example_seed(seed: int, index: Any, times: int = 0, place: int = 0) -> int:
    """The seed for an example.

    Args:
        seed: Seed of the epoch.
        index: The dataset index: an integer, a name, or a tuple of these.
        times: How often the index was drawn before in this epoch.
        place: Position in the epoch; used instead of an index of another type.
    """
    positions = _positions(index)
    if positions is None:
        return fold(seed, "place", place)
    return fold(seed, *positions, times) if times else fold(seed, *positions)


def _positions(index: Any) -> list[int | str] | None:
    if isinstance(index, str):
        return [index]
    if isinstance(index, (tuple, list)):
        parts = [_positions(part) for part in index]
        if any(part is None for part in parts):
            return None
        return [position for part in parts if part is not None for position in part]
    try:
        return [operator.index(index)]  # also numpy integers and tensors of one element
    except TypeError:
        return None


def draws(dataset: Any) -> bool:
    """Whether reading an example can draw random numbers."""
    if type(dataset) is Subset:
        return draws(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return any(draws(part) for part in dataset.datasets)
    return type(dataset) not in (list, range, TensorDataset)


def takes_many(dataset: Any) -> bool:
    """Whether the dataset reads a batch of examples at once (``__getitems__``)."""
    while type(dataset) is Subset:  # Subset always has the method
        dataset = dataset.dataset
    return bool(getattr(dataset, "__getitems__", None))


class Examples:
    """Reads examples from a map-style dataset, and seeds the generators for each.

    Attributes:
        random: Whether the dataset can draw random numbers.
    """

    def __init__(self, dataset: Any) -> None:
        self.random = draws(dataset)
        self._dataset = dataset
        self._many = takes_many(dataset)

    def take(
        self, indices: Sequence[Any], seed: int, times: Sequence[int] = (), place: int = 0
    ) -> list[Any]:
        """The examples at `indices`. The state of the generators is not restored.

        Args:
            indices: Indices of the dataset.
            seed: Seed of the epoch.
            times: How often each index was drawn before in this epoch; all 0 if empty.
            place: Position of the first one in the epoch.
        """
        if self._many:
            if self.random:
                reseed(example_seed(seed, indices[0], times[0] if times else 0, place))
            return self._dataset.__getitems__(indices)
        if not self.random:
            return [self._dataset[index] for index in indices]
        return [
            self._one(index, example_seed(seed, index, times[i] if times else 0, place + i))
            for i, index in enumerate(indices)
        ]

    def one(self, index: Any, seed: int, times: int = 0, place: int = 0) -> Any:
        """Like `take`, for one example that is not part of a batch."""
        if not self.random:
            return self._dataset[index]
        return self._one(index, example_seed(seed, index, times, place))

    def before_collation(
        self, indices: Sequence[Any], seed: int, times: Sequence[int] = (), place: int = 0
    ) -> None:
        """Seed the generators for collating a batch. Arguments as for `take`."""
        first = example_seed(seed, indices[0], times[0] if times else 0, place)
        reseed(fold(first, "batch"))

    def _one(self, index: Any, seed: int) -> Any:
        reseed(seed)
        return self._dataset[index]
