"""``fnloop replay``: run one step of a run again and inspect it."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from torch import Tensor

from fnloop.cli import config
from fnloop.cli.export_command import write_tensors
from fnloop.cli.forward import reach, say, start, train_of
from fnloop.cli.messages import Problem, shown, usage
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import (
    checkpoint_folders,
    configuration_of,
    member_in,
    newest_of,
    of_sweep,
    recipe_of,
    recipe_with,
    run_of,
)
from fnloop.cli.settings import segments_in
from fnloop.cli.sweep_folder import Sweep, sweep_of
from fnloop.data.batches import Batches
from fnloop.data.sources import as_source
from fnloop.replays.replay import Replay
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.trees.paths import tree_items
from fnloop.values.cursor import Cursor
from fnloop.values.nonfinite_values import as_numbers, batch_items


def run_replay(arguments: Namespace) -> int:
    """``fnloop replay RUN``."""
    which = getattr(arguments, "checkpoint", None)
    folder = Path(arguments.run)
    if which is None and (folder / MANIFEST).is_file():
        which = arguments.run
        folder = run_of(folder) or folder
    number = getattr(arguments, "step", None)
    if number is not None and number < 1:
        raise usage(f"--step {number}: steps are counted from 1, in batches drawn.")
    save = getattr(arguments, "save", None)
    if save is not None and not save.endswith(".safetensors"):
        raise usage(f"--save {save}: expected a file called .safetensors.")

    configuration = configuration_of(folder)
    sweep = sweep_of(configuration)
    member = member_in(folder, sweep, getattr(arguments, "member", None))
    file = recipe_of(configuration, getattr(arguments, "recipe", None))
    limit = (_before_skip(folder, member) if number is None else number) - 1
    segments = _segments(configuration, sweep, file, folder, limit)
    recipe = recipe_with(file, segments[-1][1])
    recipe = recipe if sweep is None else of_sweep(recipe, sweep)
    source = as_source(train_of(recipe))
    state = start(recipe, source, folder, which, limit)
    _check_unchanged(Cursor.of(state.cursor).count, segments, limit)
    found = reach(recipe, source, state, number, member)
    places = _places(recipe, found)
    if sweep is not None and member is not None:
        say(sweep.about(member))
    print(dataclasses.replace(found, notes=(*places, *found.notes)))
    if save is not None:
        write_tensors(Path(save), _tensors(found), {"run": str(folder)}, force=True)
        print(f"\nsaved  {shown(Path(save))}")
    return 0


def _segments(
    configuration: config.Config, sweep: Sweep | None, file: Path, folder: Path, limit: int
) -> list[tuple[int, dict[str, Any]]]:
    """The flags and the batch from which each set of them held, up to `limit` batches."""
    own = configuration.plain if sweep is None else sweep.flags
    now = {name: value for name, value in own.items() if name != "recipe"}
    inside = checkpoint_folders(folder)
    newest = newest_of(inside or checkpoint_folders(folder, recipe_with(file, now)))
    if newest is None:
        return [(0, now)]
    manifest = read_manifest(newest)
    end, status = manifest["cursor"]["count"], manifest["status"]
    if limit > end and status in ("completed", "stopped"):
        raise usage(f"This run has {end} batches ({status}), so there is no step {limit + 1}.")
    if limit > end:
        say(f"note  the newest checkpoint is of batch {end}: the run itself may not have got here")
    memo = manifest["memos"].get("settings")
    past = [entry for entry in segments_in(memo or []) if entry[0] <= limit]
    return past or [(0, now)]


def _check_unchanged(here: int, segments: list[tuple[int, dict[str, Any]]], limit: int) -> None:
    changed = [begin for begin, _ in segments if begin > here]
    if changed:
        raise Problem(
            f"The run was resumed with other flags after {changed[-1]} batches, and no checkpoint "
            f"between there and batch {limit} is left to start from, so step {limit + 1} cannot be "
            "replayed. Keep more of them: fl.checkpoint(folder, keep=None)."
        )


def _before_skip(folder: Path, member: int | None) -> int:
    """The first batch of the first row of the history with a skipped step, of this member."""
    file = folder / "history.csv"
    if not file.is_file():
        return 1
    before, column = 0, "skipped" if member is None else f"skipped[{member}]"
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if float(row.get(column) or 0) > 0:
                return before + 1
            before = int(row["step"])
    who = "run" if member is None else "member"
    raise Problem(
        f"No step of this {who} was skipped, says {shown(file)}. To see another one: --step N, "
        "with N the number of batches drawn."
    )


def _places(recipe: Recipe, found: Replay) -> Iterator[str]:
    """The positions of the suspects in the data, if its order is known."""
    train = train_of(recipe)
    if not isinstance(train, Batches):
        return
    indices = train.numbers(found.before.cursor).tolist()
    for suspect in found.examples[:4]:
        place = indices[suspect.index]
        yield f"Example {suspect.index} of the batch is example {place} of the data."


def _tensors(found: Replay) -> dict[str, Tensor]:
    """The tensors that ``--save`` writes."""
    tensors: dict[str, Tensor] = {}
    for part, state in (("before", found.before), ("after", found.after)):
        tensors.update({f"{part}/{path}": leaf for path, leaf in tree_items(state)})
    tensors.update({f"gradients/{name}": leaf for name, leaf in found.gradients.items()})
    for path, leaf in batch_items(found.batch):
        value = as_numbers(leaf)
        if value is not None:
            tensors[path] = value
    return tensors
