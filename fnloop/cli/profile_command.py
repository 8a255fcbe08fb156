"""``fnloop profile``: where the time and the memory of a recipe's step go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fnloop.cli import run_report
from fnloop.cli.forward import train_of
from fnloop.cli.given import given_in
from fnloop.cli.messages import shown, usage
from fnloop.profiling.profile import profile


def run_profile(arguments: Sequence[str]) -> int:
    """``fnloop profile RECIPE.py``."""
    given = given_in("profile", arguments)
    options = given.flags.options
    plot, trace = given.picture(), options.get("trace")
    if trace is not None and not trace.endswith((".json", ".json.gz")):
        raise usage(f"--trace {trace}: expected a file called .json or .json.gz.")
    steps = options.get("steps", 10)
    if steps < 1:
        raise usage(f"--steps {steps}: expected a number of steps, from 1 on.")
    recipe = given.recipe()
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    found = profile(recipe.step, state, train_of(recipe), steps=steps)
    print(found)
    rows = list[tuple[str, str]]()
    if trace is not None:
        rows.append(("trace", f"{shown(found.save_trace(trace))}, for https://ui.perfetto.dev"))
    if plot is not None:
        found.plot(plot)
        rows.append(("plot", shown(Path(plot))))
    if rows:
        print(f"\n{run_report.columns(rows)}")
    return 0
