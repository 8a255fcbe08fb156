"""Run forward from a checkpoint to the step to be replayed."""

from __future__ import annotations

import math
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from fnloop.cli.messages import Problem, usage
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import checkpoint_folders, told
from fnloop.cli.sweep_members import metrics_of
from fnloop.data.batches import START
from fnloop.data.bundle import Data
from fnloop.data.iterables import is_once
from fnloop.data.sources import Source, as_source
from fnloop.loop.callbacks import sort
from fnloop.loop.progress import progress
from fnloop.loop.run import run
from fnloop.replays.replay import Replay, replay
from fnloop.stages.callback import Callback
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.folders import listing
from fnloop.store.load import load
from fnloop.store.manifest import read_manifest
from fnloop.values.cursor import Cursor
from fnloop.values.merging import numbers
from fnloop.values.state import State


def train_of(recipe: Recipe) -> Any:
    """The training data."""
    return recipe.data.train if isinstance(recipe.data, Data) else recipe.data


def first_batch(recipe: Recipe, key: int) -> Any:
    """The first batch of the training data, for a state with this key."""
    with closing(as_source(train_of(recipe)).iterate(START, key)) as batches:
        _, batch = next(batches)
    return batch


def start(
    recipe: Recipe,
    source: Source,
    folder: Path,
    which: str | None,
    limit: int,
) -> State:
    """A state at or before `limit` batches: of the nearest checkpoint, else the initial one."""
    fresh = recipe.step.init(recipe.model, seed=recipe.seed)
    recall = getattr(source, "recall", None)  # a loader that keeps its own position
    # Any other iterator starts at its beginning, and so must the state.
    once = recall is None and is_once(train_of(recipe))
    for count, path in () if once else _candidates(recipe, folder, which, limit):
        if count > limit:
            raise usage(
                f"--checkpoint {which} was saved after {count} batches, and step {limit + 1} "
                "needs one that is older. Leave it out to take the nearest one."
            )
        try:
            state = load(path, like=fresh)
        except CheckpointError as error:
            if which is not None:
                raise
            warnings.warn(f"{error} An older one is used.", stacklevel=2)
            continue
        say(f"from  {told(path)}")
        manifest = read_manifest(path)
        position = (manifest.get("data") or {}).get("position")
        if recall is not None and position is not None:
            recall(position)
        return state
    say("from  the initial state")
    if isinstance(recipe.model, nn.Module):
        say(
            "note  the recipe gives a module: it starts as the run did only if the recipe makes "
            "the same weights each time. A function that builds it (model=lambda: ...) is seeded."
        )
    return fresh


def _candidates(
    recipe: Recipe, folder: Path, which: str | None, limit: int
) -> list[tuple[int, Path]]:
    if which is not None:
        path = Path(which)
        return [(int(read_manifest(path)["cursor"]["count"]), path)]
    places = checkpoint_folders(folder, recipe)
    found = [entry for place in places for entry in listing(place).items()]
    return sorted((entry for entry in found if entry[0] <= limit), reverse=True)


class _Found(Exception):
    """Raised before the step that is to be replayed."""

    def __init__(self, state: State, batch: Any) -> None:
        self.state, self.batch = state, batch


class _Until:
    """A step that raises `_Found` before batch `number`, or at the first one that is skipped, of a
    population by this member.
    """

    def __init__(self, step: Any, number: int | None, member: int | None) -> None:
        self.step, self.number, self.member = step, number, member

    @property
    def donate(self) -> bool:
        return getattr(self.step, "donate", False)

    def __call__(self, state: State, batch: Any) -> Any:
        if self.number is not None:
            if Cursor.of(state.cursor).count >= self.number - 1:
                raise _Found(state, batch)
            return self.step(state, batch)
        result = self.step(state, batch)
        metrics = numbers(result[1])
        metrics = metrics if self.member is None else metrics_of(metrics, self.member)
        if metrics.get("skipped", 0.0) or not _is_finite(metrics.get("loss", 0.0)):
            raise _Found(state, batch)
        return result


class _progress(progress):
    def close(self, status: str) -> None:
        super().close("replayed")


def reach(
    recipe: Recipe, source: Source, state: State, number: int | None, member: int | None
) -> Replay:
    """Run forward, without the recipe's effects, and replay step `number` or the first skipped.

    Of a population all members go forward, to the bit, and the step of this one is replayed.
    """
    here = Cursor.of(state.cursor).count
    stages = list(_that_matter(sort(recipe.callbacks, recipe.step)[0]))
    step: Any = recipe.step
    if number is None and getattr(step, "donate", False):
        raise Problem(
            "The first skipped step of fl.compile(step, donate=True) cannot be looked for, as the "
            "state before it is gone. Say which: --step N."
        )
    effects = [] if number == here + 1 else [_progress()]
    steps = number or recipe.steps
    epochs = None if number or recipe.epochs is None else recipe.epochs
    loop = run(
        _Until(step, number, member),
        state,
        source,
        steps=None if steps is None else max(0, steps - here),
        epochs=None if epochs is None else max(0, epochs - int(state.cursor[0])),
        callbacks=[*stages, *effects],
    )
    try:
        for state, _ in loop:  # noqa: B007
            pass
    except _Found as reached:
        return replay(step, reached.state, reached.batch, member)
    count = Cursor.of(state.cursor).count
    if number is None:
        raise Problem(
            f"No step up to batch {count} was skipped, nor has a loss that is not finite."
        )
    raise Problem(
        f"The run ends after {count} batches (a callback asks for a stop, or the data ends), so "
        f"there is no step {number}."
    )


def _that_matter(stages: list[Callback]) -> list[Callback]:
    """The callbacks without validation at the end, whose metrics only effects would see."""
    while stages and stages[-1].only_evaluates:
        stages = stages[:-1]
    return stages


def _is_finite(value: float) -> bool:
    return math.isfinite(value)


def say(text: str) -> None:
    """Print a note to the standard error."""
    print(text, file=sys.stderr, flush=True)
