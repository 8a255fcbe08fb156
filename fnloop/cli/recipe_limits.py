"""How long a recipe trains."""

from __future__ import annotations

from typing import Any

from fnloop.cli.messages import Problem
from fnloop.cli.recipe import Recipe

_ENDS = ("epochs", "steps", "seconds", "budget")
_LEAST = ("min_epochs", "min_steps")


def limits_of(recipe: Recipe) -> dict[str, Any]:
    """Its limits, as `fl.fit` takes them.

    Raises:
        Problem: There is none that ends the training.
    """
    if all(getattr(recipe, name) is None for name in _ENDS):
        raise Problem("Training has no end: give fl.Recipe epochs=, steps=, seconds= or budget=.")
    return {name: getattr(recipe, name) for name in (*_ENDS, *_LEAST)}
