"""What may stand in a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fnloop.data.readers import check_part
from fnloop.stages.functions import as_loss
from fnloop.trees.show import short
from fnloop.values.counts import as_count, as_number
from fnloop.values.state import State

if TYPE_CHECKING:
    from fnloop.cli.recipe import Recipe


def checked(recipe: Recipe) -> dict[str, int | float]:
    """The counts and durations of a recipe by name, after a look at all that it has.

    Raises:
        TypeError: Something in it is not what it takes.
        ValueError: A number is out of range.
    """
    if not hasattr(recipe.step, "init"):
        raise TypeError(
            f"Recipe(step=...) takes a training step, fl.pipe(loss, fl.grad, "
            f"fl.update(optimizer)); it was given {type(recipe.step).__name__}."
        )
    found = dict[str, Any]()
    for name in ("epochs", "steps", "min_epochs", "min_steps", "seed"):
        value, least = getattr(recipe, name), None if name == "seed" else 0
        if value is not None or name == "seed":
            found[name] = as_count(value, f"Recipe({name}=...)", least)
    for name in ("seconds", "budget"):
        if (value := getattr(recipe, name)) is not None:
            found[name] = as_number(value, f"Recipe({name}=...)")
    if recipe.data is None:
        raise TypeError("Recipe(data=...) takes fl.Data, or training data alone, got None.")
    check_part(recipe.data, "Recipe(data=...)")
    if not callable(recipe.model) and not isinstance(recipe.model, State):
        raise TypeError(
            "Recipe(model=...) takes what step.init takes: an nn.Module, or a function that "
            f"builds one; got {short(recipe.model)}."
        )
    for name in ("metrics", "predict"):
        if (value := getattr(recipe, name)) is not None:
            as_loss(value, f"Recipe({name}=...): (model, batch)")
    return found
