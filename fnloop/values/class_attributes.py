"""What a call changes on the classes of a model, which all of their instances share."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator
from typing import Any

from torch import nn

from fnloop.values.module_parts import CONTAINERS


class ClassAttributes:
    """Remembers the attributes of the classes of a module that are not torch's.

    >>> class Net(nn.Module):
    ...     history = []
    >>> before = ClassAttributes(Net())
    >>> Net.history.append(1)
    >>> before.changed()
    ['Net.history']
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = {
            (kind, name): (value, _contents(value))
            for kind in _classes(module)
            for name, value in vars(kind).items()
            if not name.startswith("__")
        }

    def changed(self) -> list[str]:
        """The names of those that have been assigned, or changed in place."""
        return [
            f"{kind.__name__}.{name}"
            for (kind, name), (value, contents) in self._before.items()
            if vars(kind).get(name) is not value or not _same_contents(value, contents)
        ]


def _classes(module: nn.Module) -> Iterator[type]:
    kinds = {kind for child in module.modules() for kind in type(child).__mro__}
    return (kind for kind in kinds if kind.__module__.split(".")[0] not in ("torch", "builtins"))


def _contents(value: Any) -> Any:
    """A copy of a container; of a function with ``functools.lru_cache``, what it has kept."""
    if isinstance(value, CONTAINERS):
        return copy.copy(value)
    return value.cache_info() if isinstance(value, _CACHED) else None


_CACHED = type(functools.lru_cache(_contents))


def _same_contents(now: Any, before: Any) -> bool:
    if isinstance(now, _CACHED):
        return now.cache_info().misses == before.misses
    if not isinstance(now, CONTAINERS):
        return True
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(now.get(key, before) is value for key, value in before.items())
    return now == before if isinstance(now, set) else all(map(operator.is_, now, before))
