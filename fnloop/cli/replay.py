"""``fnloop replay``: one step of a run again, seen from inside."""

from __future__ import annotations

import csv
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from fnloop.cli import config
from fnloop.cli.errors import Problem, shown, usage
from fnloop.cli.export import write_tensors
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import (
    checkpoint_folders,
    configuration_of,
    newest_of,
    recipe_of,
    recipe_with,
    told,
)
from fnloop.cli.settings import segments_in
from fnloop.data import Batches, Data, as_source
from fnloop.data.sources import Source
from fnloop.loop import progress, run
from fnloop.loop.callbacks import sort
from fnloop.loop.every import Every
from fnloop.loop.nonfinite import as_numbers, batch_items
from fnloop.loop.replay import Replay, replay
from fnloop.loop.validate import validate
from fnloop.stages.base import Callback
from fnloop.store import CheckpointError, load, read_manifest
from fnloop.store.folders import listing
from fnloop.store.manifest import MANIFEST
from fnloop.trees.paths import tree_items
from fnloop.values import Cursor, State, numbers


def run_replay(arguments: Namespace) -> int:
    """``fnloop replay RUN``."""
    which = getattr(arguments, "checkpoint", None)
    folder = Path(arguments.run)
    if which is None and (folder / MANIFEST).is_file():
        which = arguments.run
        folder = next((p for p in folder.absolute().parents[:2] if _is_run(p)), folder)
    number = getattr(arguments, "step", None)
    if number is not None and number < 1:
        raise usage(f"--step {number}: steps are counted from 1, in batches drawn.")
    save = getattr(arguments, "save", None)
    if save is not None and not save.endswith(".safetensors"):
        raise usage(f"--save {save}: expected a file called .safetensors.")

    configuration = configuration_of(folder)
    file = recipe_of(configuration, getattr(arguments, "recipe", None))
    limit = (_before_skip(folder) if number is None else number) - 1
    segments = _segments(configuration, file, folder, limit)
    recipe = recipe_with(file, segments[-1][1])
    source = as_source(_train(recipe))
    state = _start(recipe, source, folder, which, limit)
    _check_unchanged(Cursor.of(state.cursor).count, segments, limit)
    found = _reach(recipe, source, state, number)
    places = _places(recipe, found)
    print(dataclasses.replace(found, notes=(*places, *found.notes)))
    if save is not None:
        write_tensors(Path(save), _tensors(found), {"run": str(folder)}, force=True)
        print(f"\nsaved  {shown(Path(save))}")
    return 0


def _is_run(path: Path) -> bool:
    return (path / config.NAME).is_file()


def _train(recipe: Recipe) -> Any:
    return recipe.data.train if isinstance(recipe.data, Data) else recipe.data


def _segments(
    configuration: config.Config, file: Path, folder: Path, limit: int
) -> list[tuple[int, dict[str, Any]]]:
    """Which flags held from which batch on, up to the step after `limit` batches."""
    now = {name: value for name, value in configuration.values.items() if name != "recipe"}
    newest = newest_of(checkpoint_folders(folder, recipe_with(file, now)))
    if newest is None:
        return [(0, now)]
    manifest = read_manifest(newest)
    end, status = manifest["cursor"]["count"], manifest["status"]
    if limit > end and status in ("completed", "stopped"):
        raise usage(f"This run has {end} batches ({status}), so there is no step {limit + 1}.")
    if limit > end:
        _say(f"note  the newest checkpoint is of batch {end}: from there on this is what would be")
    memo = manifest["memos"].get("settings")
    past = [entry for entry in segments_in(memo or []) if entry[0] <= limit]
    return past or [(0, now)]


def _check_unchanged(here: int, segments: list[tuple[int, dict[str, Any]]], limit: int) -> None:
    changed = [begin for begin, _ in segments if begin > here]
    if changed:
        raise Problem(
            f"The run was resumed with other flags after {changed[-1]} batches, and no checkpoint "
            f"from there to batch {limit} is left to begin with, so step {limit + 1} cannot be "
            "seen as it was. Keep more of them: fl.checkpoint(folder, keep=None)."
        )


def _before_skip(folder: Path) -> int:
    """The first batch of the stretch of the history in which a step was skipped first."""
    file = folder / "history.csv"
    if not file.is_file():
        return 1
    before = 0
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if float(row.get("skipped") or 0) > 0:
                return before + 1
            before = int(row["step"])
    raise Problem(
        f"No step of this run was skipped, says {shown(file)}. To see another one: --step N, with "
        "N the number of batches drawn."
    )


def _start(
    recipe: Recipe,
    source: Source,
    folder: Path,
    which: str | None,
    limit: int,
) -> State:
    """A state at or before `limit` batches: of the nearest checkpoint, else the initial one."""
    fresh = recipe.step.init(recipe.model, seed=recipe.seed)
    recall = getattr(source, "recall", None)  # of a loader that knows its own place
    # Any other iterator begins at its beginning, and so must the state.
    once = recall is None and isinstance(_train(recipe), Iterator)
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
            warnings.warn(f"{error} An older one is taken.", stacklevel=2)
            continue
        _say(f"from  {told(path)}")
        manifest = read_manifest(path)
        position = (manifest.get("data") or {}).get("position")
        if recall is not None and position is not None:
            recall(position)
        return state
    _say("from  the initial state")
    if isinstance(recipe.model, nn.Module):
        _say(
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


def _places(recipe: Recipe, found: Replay) -> Iterator[str]:
    """Which examples of the data the suspects are, where its order is known."""
    train = _train(recipe)
    if not isinstance(train, Batches):
        return
    # The order is a function of these alone, so that of the numbers themselves tells the places.
    numbered = torch.arange(train.examples)
    order = Batches(numbered, train.batch_size, train.shuffle, train.seed, train.drop_last)
    indices = order.at(found.before.cursor)[1].tolist()
    for suspect in found.examples[:4]:
        place = indices[suspect.index]
        yield f"Example {suspect.index} of the batch is example {place} of the data."


class _Found(Exception):
    """The step that was looked for is about to be run."""

    def __init__(self, state: State, batch: Any) -> None:
        self.state, self.batch = state, batch


class _Until:
    """A step that ends the run before batch number `number`, or at the first skipped one."""

    def __init__(self, step: Any, number: int | None) -> None:
        self.step, self.number = step, number

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
        if metrics.get("skipped", 0.0) or not _is_finite(metrics.get("loss", 0.0)):
            raise _Found(state, batch)
        return result


class _progress(progress):
    def close(self, status: str) -> None:
        super().close("replayed")


def _reach(recipe: Recipe, source: Source, state: State, number: int | None) -> Replay:
    """Run forward, without the recipe's effects, and replay the step that was asked for."""
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
        _Until(step, number),
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
        return replay(step, reached.state, reached.batch)
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
    """Without validation at the end, whose metrics nobody but effects would see."""
    while stages and _only_validates(stages[-1]):
        stages = stages[:-1]
    return stages


def _only_validates(stage: Any) -> bool:
    return isinstance(stage.inner if isinstance(stage, Every) else stage, validate)


def _is_finite(value: float) -> bool:
    return bool(torch.tensor(value).isfinite())


def _tensors(found: Replay) -> dict[str, Tensor]:
    """What is written by ``--save``."""
    tensors: dict[str, Tensor] = {}
    for part, state in (("before", found.before), ("after", found.after)):
        tensors.update({f"{part}/{path}": leaf for path, leaf in tree_items(state)})
    tensors.update({f"gradients/{name}": leaf for name, leaf in found.gradients.items()})
    for path, leaf in batch_items(found.batch):
        value = as_numbers(leaf)
        if value is not None:
            tensors[path] = value
    return tensors


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
