"""Runs on the disk: their folders, checkpoints and recipes."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.cli import config, parsers
from fnloop.cli.flags import parse
from fnloop.cli.messages import Problem, did_you_mean, shown, usage
from fnloop.cli.recipe import Recipe
from fnloop.cli.source import build, load_function
from fnloop.cli.sweep_folder import NAME, Sweep, sweep_of
from fnloop.cli.sweep_members import chosen_member, refuse_member
from fnloop.effects.effect import Effect
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.folders import best, latest, listing
from fnloop.store.load import load
from fnloop.store.manifest import MANIFEST, read_manifest, standing
from fnloop.values.stacked import member as member_of
from fnloop.values.state import State


class OpenedRun(NamedTuple):
    """A run of ``fnloop fit``, or a sweep or one of its members, opened.

    Attributes:
        folder: The run's folder.
        recipe: The recipe, built from the run's configuration, with the step of what is opened.
        checkpoint: The chosen checkpoint.
        state: The state loaded from it.
        sweep: The sweep that it is, or is of.
        member: Which of its members; None for all.
    """

    folder: Path
    recipe: Recipe
    checkpoint: Path
    state: State
    sweep: Sweep | None = None
    member: int | None = None

    def told(self, more: str = "") -> str:
        """Its checkpoint as text, and in a second line the member."""
        text = told(self.checkpoint, self.member) + more
        if self.sweep is None or self.member is None:
            return text
        return f"{text}\n{self.sweep.about(self.member)}"


def open_run(
    path: str,
    which: str | None,
    recipe_file: str | None,
    asked: str | None,
    whole: bool = False,
) -> OpenedRun:
    """Build a run's recipe, and load a state.

    Args:
        path: The run's folder, or one of its checkpoints.
        which: "best", "latest", a checkpoint's folder; or None: the best if a metric was monitored,
            else the latest; of a sweep the latest, as its table is.
        recipe_file: The recipe file, if it is no longer at the path in the configuration.
        asked: What is given for ``--member``.
        whole: Whether a sweep is opened with all its members if none is asked for.

    Raises:
        Problem: The configuration, the recipe or the checkpoint is missing, or the member.
    """
    folder = Path(path)
    if which is None and (folder / MANIFEST).is_file():
        which, folder = path, run_of(folder) or folder
    configuration = configuration_of(folder)
    sweep = sweep_of(configuration)
    member = None if whole and asked is None else member_in(folder, sweep, asked)
    recipe = _recipe_in(configuration, sweep, recipe_file)
    folders = checkpoint_folders(folder, recipe)
    chosen = choose(folders, which or (None if sweep is None else "latest"), folder)
    state = load(chosen, like=recipe.step.init(recipe.model, seed=recipe.seed))
    if member is not None:
        step = recipe.step.uncompiled.member(member)
        recipe, state = dataclasses.replace(recipe, step=step), member_of(state, member)
    return OpenedRun(folder, recipe, chosen, state, sweep, member)


def member_in(folder: Path, sweep: Sweep | None, asked: str | None) -> int | None:
    """The number of the member that ``--member`` names; None for a single run.

    Raises:
        Problem: It names none, or there are none.
    """
    if sweep is None:
        refuse_member(asked, folder)
        return None
    judged = newest_monitored(checkpoint_folders(folder))
    return chosen_member(asked, folder, judged, sweep.size, sweep)


def member_in_checkpoint(
    checkpoint: Path, run: Path | None, sweep: Sweep | None, asked: str | None
) -> int | None:
    """As `member_in`, for a checkpoint that may be of no sweep: a population is enough.

    Args:
        checkpoint: The checkpoint.
        run: The folder of the run that it belongs to.
        sweep: The sweep that it belongs to.
        asked: What is given for ``--member``.
    """
    shape = read_manifest(checkpoint)["leaves"]["step"]["shape"]
    if not shape:
        refuse_member(asked, checkpoint)
        return None
    judged = newest_monitored(checkpoint_folders(run)) or checkpoint
    return chosen_member(asked, run or checkpoint, judged, shape[0], sweep)


def _recipe_in(
    configuration: config.Config, sweep: Sweep | None, recipe_file: str | None
) -> Recipe:
    """The recipe of a run; of a sweep, with the step of all its members."""
    file = recipe_of(configuration, recipe_file)
    if sweep is None:
        return _configured(file, configuration.path)
    return of_sweep(recipe_with(file, sweep.flags), sweep)


def of_sweep(recipe: Recipe, sweep: Sweep) -> Recipe:
    """The recipe of the first member with the step of all."""
    return dataclasses.replace(recipe, step=sweep.population(recipe.step))


def recipe_with(file: Path, flags: Mapping[str, Any]) -> Recipe:
    """The recipe of a file, built with flags that a run once had."""
    with tempfile.TemporaryDirectory() as folder:
        config.write(file, flags, Path(folder))
        return _configured(file, Path(folder) / config.NAME)


def _configured(file: Path, configuration: Path) -> Recipe:
    function = load_function(file)
    parser = parsers.of("fit", function, file.name)
    arguments = [str(file), "--config", str(configuration)]
    return build(function, file, parse(parser, function, arguments, file).values)


def run_of(path: Path) -> Path | None:
    """The folder of the run that `path` is, or that the checkpoint `path` belongs to."""
    places = [path, *path.absolute().parents[:2]] if (path / MANIFEST).is_file() else [path]
    return next((place for place in places if any(_configurations(place))), None)


def _configurations(folder: Path) -> Iterator[Path]:
    """The file that tells what was trained in a folder, of ``fnloop fit`` or of a sweep."""
    yield from [folder / name for name in (config.NAME, NAME) if (folder / name).is_file()]


def configuration_of(folder: Path) -> config.Config:
    """The configuration in a run's folder, or what tells of a sweep in its.

    Raises:
        Problem: There is none.
    """
    for file in _configurations(folder):
        return config.Config(file)
    if folder.is_dir():
        fault = f"{shown(folder)} is not the folder of a run: it has no {config.NAME}, which "
        hint = f"fnloop fit writes there, nor {NAME}, which fnloop sweep does."
    elif folder.is_file():
        fault, hint = f"{shown(folder)} is a file; expected", " the folder of a run."
    else:
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        names = [p.name for p in beside if any(_configurations(p))]
        fault = f"There is no run {shown(folder)}."
        hint = did_you_mean(folder.name, names, lambda name: shown(folder.parent / name))
    raise usage(fault + hint)


def recipe_of(configuration: config.Config, recipe_file: str | None) -> Path:
    """The recipe file of a run.

    Raises:
        Problem: The configuration names none, or it does not exist.
    """
    file = Path(recipe_file) if recipe_file else configuration.recipe()
    if file is None:
        raise usage(
            f"{shown(configuration.path)} names no recipe. Add a line recipe: FILE.py, relative to "
            "its folder, or pass --recipe FILE.py."
        )
    if not recipe_file and not file.is_file():
        raise usage(
            f"The recipe of this run is gone: {configuration.where('recipe')} says "
            f"{shown(file)}. If it has moved, pass --recipe FILE.py."
        )
    return file


def effects_of(recipe: Recipe) -> Iterator[Effect]:
    """The recipe's effects, without the `fl.every` around them."""
    for callback in recipe.callbacks:
        inner = getattr(callback, "inner", callback)
        if isinstance(inner, Effect):
            yield inner


def folder_of(recipe: Recipe) -> Path | None:
    """The folder of the run that a recipe describes."""
    if recipe.folder is not None:
        return Path(recipe.folder)
    return next((e.saves_to for e in effects_of(recipe) if e.saves_to is not None), None)


def checkpoint_folders(run: Path | None, recipe: Recipe | None = None) -> list[Path]:
    """Folders of a run with checkpoints: its folder or those below, else those of its recipe."""
    inside = sorted(path for path in run.iterdir() if path.is_dir()) if run and run.is_dir() else []
    found = [path for path in [*([run] if run else []), *inside] if listing(path)]
    if found or recipe is None:
        return found
    named = [e.saves_to for e in effects_of(recipe) if e.saves_to is not None]
    return [folder for folder in named if listing(folder)]


def choose(folders: Sequence[Path], which: str | None, run: Path) -> Path:
    """A checkpoint of a run.

    Args:
        folders: The run's folders of checkpoints.
        which: As for `open_run`.
        run: The run's folder, for messages.

    Raises:
        Problem: There is no such checkpoint.
    """
    if which not in (None, "best", "latest"):
        path = Path(which)
        if (path / MANIFEST).is_file():
            return path
        raise usage(
            f"--checkpoint {which} is no checkpoint; expected best, latest, or a folder such as "
            f"{shown(run / 'step-00000100')}."
        )
    if which != "latest":
        found = next((path for folder in folders if (path := best(folder))), None)
        if found is not None:
            return found
        if which == "best":
            raise Problem(
                f"{shown(run)} has no best checkpoint: none was saved with a monitored metric, as "
                'fl.checkpoint(folder, monitor="val/loss") does. Say --checkpoint latest.'
            )
    newest = newest_of(folders)
    if newest is None:
        raise Problem(
            f"{shown(run)} has no checkpoint. The usual cause is a recipe without "
            "fl.checkpoint(folder) among its callbacks, or a run that failed before its first one."
        )
    return newest


def newest_of(folders: Sequence[Path]) -> Path | None:
    """The latest checkpoint of all in `folders`."""
    found = [path for folder in folders if (path := latest(folder))]
    return max(found, key=lambda path: path.name, default=None)


def newest_monitored(folders: Sequence[Path]) -> Path | None:
    """The latest checkpoint of all in `folders` with a monitored metric."""
    found = [entry for folder in folders for entry in listing(folder).items()]
    for _, path in sorted(found, reverse=True):
        with suppress(CheckpointError):
            if read_manifest(path)["monitor"]:
                return path
    return None


def told(path: Path, member: int | None = None) -> str:
    """A checkpoint as text: its path, epoch, batches and monitored metric, of a member its own."""
    manifest = read_manifest(path)
    (_, epoch, count), monitor = standing(manifest), manifest["monitor"]
    text = f"{shown(path)} (epoch {epoch}, {count} batches"
    value = monitored(manifest, member)
    return text + (f", {monitor['name']} {value:.4g})" if monitor else ")")


def monitored(manifest: Mapping[str, Any], member: int | None = None) -> float:
    """The monitored metric of a checkpoint, of a sweep that of a member or the best; else nan."""
    monitor = manifest["monitor"]
    if monitor is None or member is None:
        return math.nan if monitor is None else monitor["value"]
    return manifest["metrics"].get(f"{monitor['name']}[{member}]", math.nan)
