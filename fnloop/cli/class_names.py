"""What the names of classes mean that are given for a recipe's flags."""

from __future__ import annotations

import inspect
import pathlib
import pkgutil
import types
from collections.abc import Callable
from typing import Any

from fnloop.cli.class_types import bases_of, given_by, is_below
from fnloop.cli.subclasses import known_classes


class ClassNames:
    """The names of classes and functions.

    They are those that the recipe's own file has (``Net``, ``nn.Linear``, ``fl.optim.adamw``), of
    the classes that a type allows (``adamw``), or dotted paths to import.

    Args:
        function: The function ``recipe``.
        file: Its file.

    Attributes:
        file: The same.
    """

    def __init__(self, function: Callable[..., Any], file: pathlib.Path) -> None:
        self.file = file
        self._held: dict[str, Any] = getattr(inspect.unwrap(function), "__globals__", {})

    def path(self, name: str, kind: Any) -> str:
        """The dotted path of what a name means where a type is expected."""
        path = self.whole(name)
        if "." not in path:
            path = known_classes(kind).get(path, [path])[0]
        return path

    def whole(self, name: str) -> str:
        """The dotted path of what the recipe's file calls `name`; else `name` itself."""
        short = name.removeprefix(f"{self.file.stem}.")
        first, *parts = short.split(".")
        found = self.held(short) if first in self._held else None
        if found is None or not callable(found):
            return name
        own = f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else ""
        paths = [own, ".".join([self._held["__name__"], first, *parts])]
        if isinstance(self._held[first], types.ModuleType):
            paths[:0] = [".".join([self._held[first].__name__, *parts])]
        return next((path for path in paths if path and found_at(path) is found), name)

    def held(self, name: str) -> Any:
        """What the recipe's file calls `name`, or what can be imported as that; else None."""
        first, *parts = name.removeprefix(f"{self.file.stem}.").split(".")
        found = self._held.get(first)
        for part in parts:
            found = getattr(found, part, None)
        return found_at(name) if found is None else found

    def own(self, kind: Any) -> list[str]:
        """The classes and functions of the recipe's file that give a value of a type."""
        bases = tuple(bases_of(kind))
        found = {n: made for n, made in self._held.items() if n[:1] != "_" and made not in bases}
        gives = {name: given_by(made) for name, made in found.items()}
        return [name for name, made in gives.items() if is_below(made, bases)]


def found_at(path: str) -> Any:
    """What a dotted path leads to; None if it leads nowhere."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None
