"""What data is made of: datasets, samplers and loaders inside of one another."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

_MOST, _DEEPEST = 10_000, 8
_READ = ("__getitem__", "__getitems__", "__iter__", "iterate", "set_epoch")
_OTHERS = (Tensor, np.ndarray, nn.Module, type, str, bytes, list, tuple, dict)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def parts(*roots: Any) -> list[Any]:
    """The objects `roots` and whatever they read from, outermost first and each once.

    They read from attributes (also in a list, tuple or dict there) that can be indexed or iterated,
    such as the dataset in a ``Subset``, or that have ``set_epoch``; not tensors, arrays, modules.
    """
    found: dict[int, Any] = {}
    level = [root for root in roots if root is not None]
    for _ in range(_DEEPEST):
        new = {id(part): part for part in level if id(part) not in found}
        found.update(new)
        if not new or len(found) > _MOST:
            break
        level = [held for part in new.values() for held in _held(part)]
    return list(found.values())


def generators_of(part: Any) -> dict[str, Any]:
    """The random generators that an object keeps, by attribute."""
    return {
        name: value for name, value in _attributes(part).items() if isinstance(value, _GENERATORS)
    }


def inexact(*data: Any) -> dict[str, Any]:
    """What `about` says of data with random numbers of its own, which are not seeded.

    A part with ``set_epoch`` is taken to seed its own.
    """
    for part in parts(*data):
        if isinstance(part, DataLoader) and part.num_workers and part.persistent_workers:
            return {
                "exact": "no",
                "reason": f"a {type(part).__name__} inside of it has workers that persist, which "
                "are not seeded anew in each epoch; pass the loader itself as data, or give it "
                "persistent_workers=False",
            }
        own = generators_of(part)
        if not own or hasattr(part, "set_epoch") or _is_of_torch(part):
            continue
        return {
            "exact": "no",
            "reason": f"{type(part).__name__} keeps a random generator of its own "
            f"({', '.join(own)}), which is not seeded; draw from torch's global one, or give it "
            "set_epoch(epoch), which seeds it",
        }
    return {}


def _is_of_torch(part: Any) -> bool:
    return type(part).__module__.startswith("torch.utils.data.")


class Epochs:
    """Tells the epoch to each part of some data that has ``set_epoch``.

    Args:
        roots: The data. It is searched once.
    """

    def __init__(self, *roots: Any) -> None:
        self._parts = [p for p in parts(*roots) if callable(getattr(p, "set_epoch", None))]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def begin(self, epoch: int) -> None:
        """Tell it at the start of an epoch."""
        for part in self._parts:
            part.set_epoch(epoch)
            _remember(part, epoch)

    def keep(self, epoch: int) -> None:
        """Tell it again to parts that have been told another one: by an evaluation, for example."""
        for part in self._parts:
            if _last(part) != epoch:
                part.set_epoch(epoch)
                _remember(part, epoch)


_told: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _last(part: Any) -> int | None:
    try:
        return _told.get(part)
    except TypeError:  # not hashable, or no weak references
        return None


def _remember(part: Any, epoch: int) -> None:
    with contextlib.suppress(TypeError):
        _told[part] = epoch


def _held(part: Any) -> Iterator[Any]:
    if isinstance(part, list | tuple | dict):
        yield from _within(part)
    for value in _attributes(part).values():
        yield from _within(value)


def _within(value: Any, deep: int = 3) -> Iterator[Any]:
    """The parts in an attribute, also if it is a list, tuple or dict."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield from [value] if _is_read(value) else ()
        return
    # A list of examples or file names may be long: its first item tells.
    first = value[0] if value and deep and len(value) <= _MOST else None
    if _is_read(first) or isinstance(first, list | tuple | dict):
        for item in value:
            yield from _within(item, deep - 1)


def _is_read(value: Any) -> bool:
    return not isinstance(value, _OTHERS) and any(hasattr(type(value), name) for name in _READ)


def _attributes(part: Any) -> dict[str, Any]:
    return getattr(part, "__dict__", {}) if not isinstance(part, type | nn.Module) else {}
