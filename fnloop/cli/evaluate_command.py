"""``fnloop validate``, ``test`` and ``predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fnloop.cli.forward import train_of
from fnloop.cli.messages import Problem, shown, usage
from fnloop.cli.outputs import SUFFIXES, write_outputs
from fnloop.cli.recipe import Recipe
from fnloop.cli.run_report import named, numbers_table
from fnloop.cli.runs import OpenedRun, open_run
from fnloop.cli.sweep_members import by_member
from fnloop.data.bundle import Data
from fnloop.data.iterables import is_once
from fnloop.data.sources import as_source
from fnloop.loop.evaluate import evaluate
from fnloop.loop.predict import predict
from fnloop.loop.statistics import refresh_batchnorm
from fnloop.stages.base import mesh_of
from fnloop.values.averaged import has_statistics
from fnloop.values.state import State

RESUMED = ("", ".parquet")
"""A folder, and a file, to which `predict` writes batch by batch."""


def run_validate(arguments: Namespace) -> int:
    """``fnloop validate RUN``."""
    return _evaluate(arguments, "validate", "val")


def run_test(arguments: Namespace) -> int:
    """``fnloop test RUN``."""
    return _evaluate(arguments, "test", "test")


def run_predict(arguments: Namespace) -> int:
    """``fnloop predict RUN``."""
    output = getattr(arguments, "output", None)
    suffix = None if output is None else Path(output).suffix
    if suffix not in (None, *SUFFIXES, *RESUMED):
        raise usage(
            f"--output {output}: expected a folder, or a file called "
            f"{', '.join(['.parquet', *SUFFIXES])}."
        )
    run = _open(arguments, whole=False)
    recipe, data = run.recipe, _part(run.recipe, "predict")
    if output is not None and suffix in RESUMED:
        function, state = _predicting(recipe, run.state)
        predict(function, state, data, recipe.params, to=output)
    else:
        write_outputs(predictions(recipe, run.state, data), output)
    if output is not None:
        print(shown(Path(output)))
    return 0


def metrics_of(recipe: Recipe) -> Callable[..., Any]:
    """The function to evaluate: the recipe's metrics, or else its loss.

    Raises:
        Problem: There is no single loss.
    """
    if recipe.metrics is not None:
        return recipe.metrics
    losses = [
        loss for stage in _stages(recipe) if (loss := getattr(stage, "loss", None)) is not None
    ]
    if len(losses) != 1:
        raise Problem(
            f"This step has {len(losses) or 'no'} losses, so say what to evaluate: "
            "fl.Recipe(..., metrics=f), with f(model, batch) -> a loss or a dict of metrics."
        )
    return losses[0]


def results(recipe: Recipe, state: State, parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the metrics on each part of the data that can be read to its end."""
    function = _evaluating(recipe, metrics_of(recipe))
    state = with_statistics(recipe, state, recipe.params)
    for name, data in parts.items():
        ends = as_source(data).batches is not None or name != "train"
        if ends and not is_once(data):
            found = evaluate(function, state, data, recipe.params, mesh=mesh_of(recipe.step))
            yield name, found


def predictions(recipe: Recipe, state: State, data: Any) -> Iterator[Any]:
    """The outputs of the recipe's model, batch by batch."""
    function, state = _predicting(recipe, state)
    return predict(function, state, data, recipe.params)


def _predicting(recipe: Recipe, state: State) -> tuple[Callable[..., Any], State]:
    function = _evaluating(recipe, recipe.predict or _call_model)
    return function, with_statistics(recipe, state, recipe.params)


def _evaluating(recipe: Recipe, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as the states of the recipe's step need it, in their dtype."""
    for stage in _stages(recipe):
        function = stage.evaluating(function)
    return function


def _stages(recipe: Recipe) -> Iterable[Any]:
    return recipe.step.stages() if hasattr(recipe.step, "stages") else ()


def with_statistics(recipe: Recipe, state: State, params: str | None) -> State:
    """The state with BatchNorm's running statistics for averaged parameters, if they need some.

    They are computed in an epoch of the training data, if that can be read again.
    """
    if params is None or not state.skeleton.statistics or has_statistics(state, params):
        return state
    data = train_of(recipe)
    if is_once(data) or as_source(data).batches is None:
        return state
    return refresh_batchnorm(
        _evaluating(recipe, metrics_of(recipe)), state, data, params, mesh_of(recipe.step)
    )


def _evaluate(arguments: Namespace, part: str, name: str) -> int:
    run = _open(arguments, whole=True)
    found = dict(results(run.recipe, run.state, named(name, _part(run.recipe, part))))
    if not found:
        raise Problem(
            f"The {part} data is an iterator, which can be read only once. Give fl.Data a list, "
            "fl.Batches, a DataLoader, or a function epoch -> iterable."
        )
    if run.sweep is None or run.member is not None:
        print(numbers_table(found))
    else:
        print(run.sweep.table(by_member(found, run.sweep.size)))
    return 0


def _open(arguments: Namespace, whole: bool) -> OpenedRun:
    names = ("checkpoint", "recipe", "member")
    which, recipe, member = [getattr(arguments, name, None) for name in names]
    run = open_run(arguments.run, which, recipe, member, whole)
    averaged = f", params={run.recipe.params!r}" if run.recipe.params else ""
    print(run.told(averaged), file=sys.stderr)
    return run


def _part(recipe: Recipe, part: str) -> Any:
    data = getattr(recipe.data, part, None) if isinstance(recipe.data, Data) else None
    if data is None:
        raise Problem(
            f"The recipe has no data for this: fl.Recipe(data=fl.Data(train, {part}=...))."
        )
    return data


def _call_model(model: Any, batch: Any) -> Any:
    return model(batch[0] if isinstance(batch, tuple | list) else batch)
