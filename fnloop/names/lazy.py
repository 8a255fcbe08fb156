"""Import the names of a package when they are first used."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fnloop.names.suggestions import no_attribute


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], Any]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are in its stub.

    Args:
        package: The package's name.
        file: Its ``__init__.py``; the imports in ``__init__.pyi`` beside it say which names there
            are, and where each comes from.
    """
    homes = _imports(Path(file).with_suffix(".pyi"))

    def get(name: str) -> Any:
        if name not in homes:
            raise no_attribute(package, name)
        home, original = homes[name]
        if home == package:  # a package inside this one
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(home), original)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), list(homes)


def _imports(stub: Path) -> dict[str, tuple[str, str]]:
    """For each name that a stub imports, the module and the name there."""
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
