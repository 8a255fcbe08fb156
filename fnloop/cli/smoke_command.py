"""``fnloop fit --smoke``: everything once, on two batches."""

from __future__ import annotations

from fnloop.cli import run_report
from fnloop.cli.evaluate_command import predictions, results
from fnloop.cli.many import is_first
from fnloop.cli.recipe import Recipe
from fnloop.data.bundle import Data
from fnloop.data.limiting import SMOKE, limit
from fnloop.loop.fit import fit
from fnloop.values.cursor import Cursor


def run_smoke(recipe: Recipe) -> int:
    """Train, validate, evaluate and predict, on two batches each, and write nothing."""
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    state, history = fit(recipe.step, state, recipe.data, callbacks=recipe.callbacks, smoke=True)
    if history.status == "interrupted":
        return 130
    few = limit(recipe.data, SMOKE)
    rows = dict(results(recipe, state, run_report.parts_of(few)))
    asked = few.predict if isinstance(few, Data) else None
    predicted = 0 if asked is None else sum(1 for _ in predictions(recipe, state, asked))
    if is_first():
        trained = Cursor.of(state.cursor).count
        also = f", {_batches(predicted)} predicted" if predicted else ""
        print(f"smoke run: {_batches(trained)} trained{also}")
        print(f"\nlast state\n{run_report.numbers_table(rows)}\n\nNothing was written.")
    return 0


def _batches(count: int) -> str:
    return f"{count} batch{'' if count == 1 else 'es'}"
