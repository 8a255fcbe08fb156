"""Load a recipe file, and build its recipe."""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fnloop.cli.isolation import inside
from fnloop.cli.messages import Problem, did_you_mean, shown, usage
from fnloop.cli.recipe import Recipe

EXAMPLE = "def recipe(lr: float = 1e-3) -> fl.Recipe: ..."
RESERVED = (
    "config",
    "deterministic",
    "env",
    "help",
    "nproc",
    "print_config",
    "recipe",
    "resume",
    "traceback",
)


def load_function(path: Path) -> Callable[..., Any]:
    """The function ``recipe`` of a recipe file.

    The file is imported as a module with a unique name; it can import modules in its folder. They
    are its own, also if another recipe of this process has imported modules of the same names.

    Raises:
        Problem: There is no such file or function, or its parameters cannot be flags.
        Exception: Anything that the file itself raises.
    """
    if not path.is_file():
        raise usage(_missing(path))
    if path.suffix in (".yaml", ".yml"):
        raise usage(f"{shown(path)} is a configuration, and no recipe: --config {shown(path)}.")
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module = types.ModuleType(f"_recipe_{path.stem}_{digest}")
    module.__file__ = str(path)
    with inside(path, anew=True):
        sys.modules[module.__name__] = module  # dataclasses look their module up
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise usage(
            f"{shown(path)} has no function recipe. A recipe file defines one, whose parameters "
            f"are the flags:\n  {EXAMPLE}"
        )
    _check_parameters(function, path)
    return function


def build(function: Callable[..., Any], path: Path, values: Mapping[str, Any]) -> Recipe:
    """Call the function with the flags' values.

    Raises:
        Problem: It returns no recipe.
        Exception: Anything that it raises.
    """
    with inside(path.resolve()):
        recipe = function(**values)
    if not isinstance(recipe, Recipe):
        raise Problem(
            f"recipe() in {shown(path)} must return fl.Recipe(step, model, data, ...); it returned "
            f"{type(recipe).__name__}."
        )
    return recipe


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The function's parameters: the flags."""
    return dict(inspect.signature(function).parameters)


def _check_parameters(function: Callable[..., Any], path: Path) -> None:
    for name, parameter in parameters(function).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            fault = f"takes *{name}, but each flag is a parameter of its own"
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            fault = f"takes {name} by position only, and flags have names"
        elif name in RESERVED:
            fault = f"has a parameter {name!r}, and --{name.replace('_', '-')} is fnloop's own"
        elif parameter.annotation is parameter.empty:
            default = parameter.default
            kind = "float" if default is parameter.empty else type(default).__name__
            fault = f"has a parameter {name!r} without a type; write {name}: {kind}"
        else:
            continue
        raise usage(f"recipe() in {shown(path)} {fault}. For example:\n  {EXAMPLE}")


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{shown(path)} is a folder; expected a recipe, which is a Python file:\n  {EXAMPLE}"
    beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, beside, lambda name: shown(path.parent / name))
    return f"There is no recipe {shown(path)}.{hint}"
