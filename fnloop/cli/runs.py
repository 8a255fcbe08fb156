"""Runs on the disk: their folders, checkpoints and recipes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.cli import config, parsers
from fnloop.cli.flags import parse
from fnloop.cli.messages import Problem, did_you_mean, shown, usage
from fnloop.cli.recipe import Recipe
from fnloop.cli.source import build, load_function
from fnloop.effects.effect import Effect
from fnloop.store.folders import best, latest, listing
from fnloop.store.load import load
from fnloop.store.manifest import MANIFEST, read_manifest, standing
from fnloop.values.state import State


class OpenedRun(NamedTuple):
    """A run of ``fnloop fit``, opened.

    Attributes:
        folder: The run's folder.
        recipe: The recipe, built from the run's configuration.
        checkpoint: The chosen checkpoint.
        state: The state loaded from it.
    """

    folder: Path
    recipe: Recipe
    checkpoint: Path
    state: State


def open_run(path: str, which: str | None, recipe_file: str | None) -> OpenedRun:
    """Build a run's recipe, and load a state.

    Args:
        path: The run's folder, or one of its checkpoints.
        which: "best", "latest", a checkpoint's folder; or None: the best if a metric was monitored,
            else the latest.
        recipe_file: The recipe file, if it is no longer at the path in the configuration.

    Raises:
        Problem: The configuration, the recipe or the checkpoint is missing.
    """
    folder = Path(path)
    if which is None and (folder / MANIFEST).is_file():
        which, folder = path, run_of(folder) or folder
    configuration = configuration_of(folder)
    recipe = _configured(recipe_of(configuration, recipe_file), configuration.path)
    chosen = choose(checkpoint_folders(folder, recipe), which, folder)
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    return OpenedRun(folder, recipe, chosen, load(chosen, like=state))


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
    return next((place for place in places if (place / config.NAME).is_file()), None)


def configuration_of(folder: Path) -> config.Config:
    """The configuration in a run's folder.

    Raises:
        Problem: There is none.
    """
    if folder.is_dir() and (folder / config.NAME).is_file():
        return config.Config(folder / config.NAME)
    if folder.is_dir():
        fault = f"{shown(folder)} is not the folder of a run: it has no {config.NAME}"
        hint = ", which fnloop fit writes there."
    elif folder.is_file():
        fault, hint = f"{shown(folder)} is a file; expected", " the folder of a run."
    else:
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        names = [p.name for p in beside if (p / config.NAME).is_file()]
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


def told(path: Path) -> str:
    """A checkpoint as text: its path, epoch, batches and monitored metric."""
    manifest = read_manifest(path)
    (_, epoch, count), monitor = standing(manifest), manifest["monitor"]
    text = f"{shown(path)} (epoch {epoch}, {count} batches"
    return text + (f", {monitor['name']} {monitor['value']:.4g})" if monitor else ")")
