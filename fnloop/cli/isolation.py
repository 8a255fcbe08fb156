"""Keep what a recipe leaves in the process (modules, paths, variables) from other recipes."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

from fnloop.cli.messages import Problem, describe, shown
from fnloop.names.whose import is_users


class _Left:
    """What a recipe has left behind.

    Attributes:
        modules: The user's modules that were imported by it.
        displaced: Modules of other places with the name of a module beside it.
        path: ``sys.path`` before and after it.
        variables: Environment variables that it has changed: before, after.
    """

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}
        self.displaced: dict[str, ModuleType] = {}
        self.path: tuple[list[str], list[str]] = [*sys.path], [*sys.path]
        self.variables: dict[str, tuple[str | None, str | None]] = {}

    def put_away(self) -> None:
        for name, module in self.modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        sys.modules.update(self.displaced)
        sys.path[:] = self.path[0]
        _set({name: before for name, (before, _) in self.variables.items()})

    def bring_back(self) -> None:
        for name in self.displaced:
            sys.modules.pop(name, None)
        sys.modules.update(self.modules)
        sys.path[:] = self.path[1]
        _set({name: after for name, (_, after) in self.variables.items()})


_left: dict[Path, _Left] = {}  # by recipe file; the process's modules are as global
_active: list[Path] = []  # the recipe whose things are in the process, if there is one


@contextlib.contextmanager
def inside(file: Path, anew: bool = False) -> Generator[None, None, None]:
    """Run a recipe's code as a script beside it, with what it left behind earlier.

    It imports from its folder first, and no ``__pycache__`` is written. What it leaves stays until
    another recipe is run, or `forget`. The working directory is put back at once, with a warning.

    Args:
        file: The recipe file, as an absolute path.
        anew: Forget what it left behind earlier.

    Raises:
        Problem: It ends the process (``sys.exit``); with its code, but never 0.
    """
    if _active and (anew or _active != [file]):
        _left[_active.pop()].put_away()
    if anew:
        _left.pop(file, None)
    known = file in _left
    left = _left.setdefault(file, _Left())
    if known and not _active:
        left.bring_back()
    elif not known:
        left.displaced = _of_other_places(file.parent)
        for name in left.displaced:
            del sys.modules[name]
    _active[:] = [file]
    modules, variables, directory = set(sys.modules), dict(os.environ), os.getcwd()
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(file.parent))
    try:
        yield
    except SystemExit as leaving:
        _, _, place = describe(leaving).partition("\n")
        raise Problem(
            f"{shown(file)} calls sys.exit({_code(leaving)}), so nothing is done. A recipe "
            f"describes a run and returns it: leave the call out.\n{place}",
            code=leaving.code if isinstance(leaving.code, int) and leaving.code else 1,
        ) from leaving
    finally:
        sys.dont_write_bytecode = writes
        with contextlib.suppress(ValueError):
            sys.path.remove(str(file.parent))
        left.path = left.path[0], [*sys.path]
        new = {name: m for name, m in [*sys.modules.items()] if name not in modules}
        left.modules.update({name: m for name, m in new.items() if _is_users(m)})
        for name in variables.keys() | os.environ.keys():
            if variables.get(name) != os.environ.get(name):
                first = left.variables.get(name, (variables.get(name), None))[0]
                left.variables[name] = first, os.environ.get(name)
        _put_directory_back(directory, file)


def forget() -> None:
    """Take what recipes have left behind out of the process."""
    if _active:
        _left[_active.pop()].put_away()
    _left.clear()


def _of_other_places(folder: Path) -> dict[str, ModuleType]:
    """The user's modules that hide one beside the recipe, with their submodules."""
    beside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    found: dict[str, ModuleType] = {}
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in beside and name != "__main__" and _is_users(module):
            place = _place(module)
            if place and not Path(place).resolve().is_relative_to(folder):
                found[name] = module
    return found


def _is_users(module: Any) -> bool:
    place = _place(module)
    return place is not None and is_users(place)


def _place(module: Any) -> str | None:
    """The file of a module, or the folder of a package without one."""
    file = getattr(module, "__file__", None)
    if file is None:
        file = next(iter(getattr(module, "__path__", ()) or ()), None)
    return file if isinstance(file, str) else None


def _put_directory_back(directory: str, file: Path) -> None:
    try:
        now = os.getcwd()
    except OSError:  # it has removed the one that it went to
        now = "one that is gone"
    if now != directory:
        os.chdir(directory)
        warnings.warn(
            f"{shown(file)} changed the working directory to {now}; it is {directory} again. Name "
            "files beside a recipe by Path(__file__).parent.",
            stacklevel=3,
        )


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _code(leaving: SystemExit) -> str:
    return "" if leaving.code is None else repr(leaving.code)
