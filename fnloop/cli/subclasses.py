"""The classes that a flag's type allows, among all that are imported."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from fnloop.cli.class_types import bases_of
from fnloop.cli.messages import OWN


def known_classes(kind: Any) -> dict[str, list[str]]:
    """Paths to import, the shortest first, by the name of the class.

    >>> from collections import OrderedDict
    >>> known_classes(OrderedDict | None)["OrderedDict"]
    ['collections.OrderedDict']
    """
    found: dict[str, list[str]] = {}
    for each in dict.fromkeys(_below(*bases_of(kind))):
        local = "<locals>" in each.__qualname__ or inspect.isabstract(each)
        local = local or OWN.match(f"{each.__module__}.") is not None  # of a recipe, by its names
        if not local and not any(part.startswith("_") for part in each.__qualname__.split(".")):
            found.setdefault(each.__name__, []).append(_path_of(each))
    return {name: sorted(set(paths), key=lambda p: (len(p), p)) for name, paths in found.items()}


def _below(*classes: Any) -> Iterator[Any]:
    for each in classes:
        yield each
        yield from _below(*type.__subclasses__(each))


def _path_of(each: type) -> str:
    """The shortest path by which it can be imported from its own package."""
    parts = each.__module__.split(".")
    for i in range(1, len(parts)):
        module = sys.modules.get(".".join(parts[:i]))
        if getattr(module, each.__name__, None) is each:
            return ".".join([*parts[:i], each.__name__])
    return f"{each.__module__}.{each.__qualname__}"
