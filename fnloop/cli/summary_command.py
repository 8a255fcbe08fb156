"""``fnloop summary``: a recipe's step and its model, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from fnloop.cli.forward import first_batch
from fnloop.cli.given import given_in
from fnloop.cli.messages import usage
from fnloop.transforms.summary import summary


def run_summary(arguments: Sequence[str]) -> int:
    """``fnloop summary RECIPE.py``."""
    given = given_in("summary", arguments)
    options = given.flags.options
    levels, ranks = options.get("levels", 2), options.get("ranks")
    if levels < 0:
        raise usage(f"--levels {levels}: expected a number from 0, the model as a whole, on.")
    if ranks is not None and ranks < 1:
        raise usage(f"--ranks {ranks}: expected a number of processes from 1 on.")
    recipe = given.recipe()
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    batch = first_batch(recipe, int(state.key.reshape(-1)[0]))
    print(summary(recipe.step, state, batch, depth=levels, mesh=ranks))
    return 0
