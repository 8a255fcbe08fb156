"""``fnloop fit`` and ``fnloop resume``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fnloop.cli import config, parsers, run_report
from fnloop.cli.evaluate_command import results
from fnloop.cli.fit_errors import goes_on_together, longer, refusal, taken_by, unfit
from fnloop.cli.flags import parse
from fnloop.cli.given import given_in
from fnloop.cli.job import Job
from fnloop.cli.many import is_first
from fnloop.cli.messages import Problem, describe, shown, usage, value_text
from fnloop.cli.recipe import Recipe
from fnloop.cli.recipe_limits import limits_of
from fnloop.cli.runs import (
    checkpoint_folders,
    configuration_of,
    effects_of,
    folder_of,
    newest_of,
    recipe_of,
    told,
)
from fnloop.cli.settings import Settings
from fnloop.cli.smoke_command import run_smoke
from fnloop.cli.source import build, load_function, parameters
from fnloop.cli.sweep_folder import sweep_in, sweep_of
from fnloop.distributed.launch import launched
from fnloop.effects.screens import screen
from fnloop.loop.fit import fit
from fnloop.loop.history import History
from fnloop.stages.base import mesh_of
from fnloop.store.checkpoint_errors import UnfitError
from fnloop.store.folders import best, target_of
from fnloop.store.load import load
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.store.run_folder import UNTRAINED
from fnloop.values.cursor import Cursor
from fnloop.values.state import State

_INTERRUPTED, _TERMINATED, _HUNG_UP = 130, 143, 129  # 128 and the number of the signal


def run_fit(arguments: Sequence[str]) -> int:
    """``fnloop fit RECIPE.py``."""
    given = given_in("fit", arguments)
    file, flags = given.file, given.flags
    if flags.options.get("print_config"):
        print(config.dump(file, flags.plain, Path.cwd()), end="")
        return 0
    recipe = given.recipe()
    if flags.options.get("smoke"):
        _check_recipe(recipe)
        return run_smoke(recipe)
    folder = folder_of(recipe)
    start = newest_of(checkpoint_folders(folder, recipe))
    if start is not None and not flags.options.get("overwrite"):
        there = folder or start.parent
        if (sweep := sweep_in(there)) is not None:
            raise usage(taken_by(sweep, there))
    job = Job(file, flags, recipe, folder, start, [a for a in arguments if a != "--resume"])
    if not flags.options.get("resume"):
        overwrite = bool(flags.options.get("overwrite"))
        replaces = overwrite or (start and read_manifest(start)["status"].endswith(UNTRAINED))
        if start is not None and not replaces:
            raise usage(refusal(job, start))
        return _train(job._replace(start=None, overwrite=overwrite))
    if flags.options.get("overwrite"):
        raise usage("--resume goes on with a run, and --overwrite deletes it: choose one.")
    if folder is not None and (folder / config.NAME).is_file():
        # The flags of the run, overridden by those on the command line.
        saved = config.Config(folder / config.NAME)
        again = given.over(saved.path)
        if again.plain != flags.plain:
            job = job._replace(flags=again, recipe=build(given.function, file, again.values))
    return _train(job)


def run_resume(arguments: Sequence[str]) -> int:
    """``fnloop resume RUN``."""
    if not arguments or arguments[0].startswith("-"):
        raise usage("Which run? fnloop resume RUN, with the folder of a run.")
    run, rest = Path(arguments[0]), list(arguments[1:])
    saved = configuration_of(run)
    if (sweep := sweep_of(saved)) is not None:
        raise usage(goes_on_together(sweep, run))
    named = next((value for option, value in pairwise(rest) if option == "--recipe"), None)
    file = recipe_of(saved, named)
    function = load_function(file)
    given = ["--config", str(saved.path)]
    if "folder" in parameters(function):  # the run may have moved
        given += ["--folder", str(run)]
    parser = parsers.of("resume", function, file.name)
    flags = parse(parser, function, [str(run), *given, *rest], file)
    recipe = build(function, file, flags.values)
    folder = folder_of(recipe)
    if folder is None or folder.resolve() != run.resolve():
        raise Problem(
            f"With its configuration, {shown(file)} describes a run in {folder}, not in {run}. The "
            "usual causes: a folder relative to the directory in which fnloop fit was called, or a "
            "run that was moved. A recipe with a parameter called folder can go on anywhere."
        )
    start = newest_of(checkpoint_folders(run, recipe))
    anew = [shown(file), "--config", shown(saved.path), *rest]
    return _train(Job(file, flags, recipe, folder, start, anew))


def _train(job: Job) -> int:
    if job.folder is not None:  # the working directory may change during the run
        job = job._replace(folder=job.folder.absolute())
    recipe, folder = job.recipe, job.folder
    _check_recipe(recipe)
    settings = Settings(job.file, job.flags.plain, folder)
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    _say(_summary(job, state))
    try:
        state, history = fit(
            recipe.step,
            state,
            recipe.data,
            **limits_of(recipe),
            callbacks=[*recipe.callbacks, settings],
            resume=None if job.start is None else job.start.parent,
            config={"recipe": str(job.file), **job.flags.plain},
            overwrite=job.overwrite,
        )
    except Exception as error:
        raise _saved(error, job) from error
    if "SIGHUP" in history.reason:  # nobody can read what is printed
        return _HUNG_UP
    if is_first():
        print(_outcome(history, job, state), flush=True)
    if is_first() and not _is_saved(state, job):
        raise Problem(
            "The last state was not saved: see the warning above. Earlier checkpoints are intact: "
            f"{_resume(job.folder or Path())}"
        )
    if "SIGTERM" in history.reason:  # exit at once, without results
        return _TERMINATED
    code = _INTERRUPTED if history.status == "interrupted" else 0
    return _conclude(job, state) or code


def _check_recipe(recipe: Recipe) -> None:
    """Refuse training without an end, and many processes for a step of one.

    Each of these would train alone, and write over the others.

    Raises:
        Problem: It is one of these.
    """
    limits_of(recipe)
    own = launched()
    if own is not None and own.size > 1 and mesh_of(recipe.step) is None:
        raise Problem(
            f"{own.launcher} has started {own.size} processes, and the recipe's step is for one. "
            "Write Recipe(step=fl.shard(step, fl.mesh()), ...): one process runs it, too."
        )


def _is_saved(state: State, job: Job) -> bool:
    """Whether the last state is on the disk, if an effect should save it."""
    folders = [e.saves_to for e in effects_of(job.recipe) if e.saves_last and e.saves_to]
    count = Cursor.of(state.cursor).count
    places = [target_of(folder, count) for folder in folders]
    return count == 0 or all((place / MANIFEST).is_file() for place in places)


def _conclude(job: Job, state: State) -> int:
    """Print the results: of the best checkpoint if a metric was monitored, else of the last."""
    found = [path for folder in _folders(job) if (path := best(folder))]
    title, last = "best checkpoint" if found else "last state", state
    if found:
        state = load(found[0], like=state)
    if job.recipe.params:
        title += f", params={job.recipe.params!r}"
    rows: dict[str, Any] = {}
    code = 0
    if screen() is not None:
        _say("\nevaluating")  # which may take as long as an epoch
    try:
        parts = run_report.parts_of(job.recipe.data)
        if not last.cursor[0]:  # after less than an epoch, a whole one may take longer than fit
            parts.pop("train", None)
        rows.update(results(job.recipe, state, parts))
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if rows and is_first():
        print(f"\n{title}\n{run_report.numbers_table(rows)}")
    return code


def _saved(error: Exception, job: Job) -> Problem:
    """Save the history of a failed run; return the error with a command to resume."""
    text = describe(error)
    if isinstance(error, UnfitError) and job.folder is not None:
        return Problem(f"{text}\n{unfit(job, job.folder)}")
    history = getattr(error, "history", None)
    if job.folder is not None and history is not None and is_first():
        run_report.write_history(history, job.folder)
    newest = newest_of(_folders(job))
    known = job.start is not None and newest == job.start.absolute()
    if newest is not None and not known and job.folder is not None:
        text += (
            f"\nThe last good state is in {told(newest)}. To resume from it after a fix: "
            f"{_resume(job.folder)}"
        )
    return Problem(text)


def _summary(job: Job, state: State) -> str:
    start = "new" if job.start is None else f"resumed from {told(job.start)}"
    flags = {name: value_text(value) for name, value in job.flags.plain.items()}
    rows = [
        ("recipe", run_report.recipe_text(job.file, flags)),
        ("model", run_report.model_text(state)),
        ("data", run_report.data_text(job.recipe.data)),
        ("folder", f"{shown(job.folder)} ({start})" if job.folder else "none: nothing is saved"),
    ]
    return run_report.columns(rows)


def _resume(folder: Path) -> str:
    """The command that goes on with a run, to paste into a shell."""
    return f"fnloop resume {shlex.quote(shown(folder))}"


def _outcome(history: History, job: Job, state: State) -> str:
    """How training ended, and where its files are."""
    rows: list[tuple[str, str]] = []
    title = history.status
    if history.status == "stopped" and history.reason:
        title += f": {history.reason}"
    if job.folder is not None:
        rows += run_report.write_history(history, job.folder)
    newest = newest_of(_folders(job))
    if newest is not None:
        rows.insert(0, ("latest", told(newest)))
    rows[:0] = [("best", told(path)) for folder in _folders(job) if (path := best(folder))]
    rows += run_report.where(job.recipe)
    if history.status == "interrupted" and newest is not None and job.folder is not None:
        rows.append(("go on", _resume(job.folder)))
    elif history.resumed and history.resumed.cursor.count == Cursor.of(state.cursor).count:
        # Nothing was left to do.
        status = "stopped" if history.status == "stopped" else "completed"
        more = longer(job.recipe, status, job.flags, history.reason)
        rows.append(("go on", f"{_resume(job.folder or Path())}{more}"))
    return f"\n{title}\n{run_report.columns(rows)}" if rows else f"\n{title}"


def _folders(job: Job) -> list[Path]:
    return checkpoint_folders(job.folder, job.recipe)


def _say(text: str) -> None:
    if is_first():
        print(text, file=sys.stderr, flush=True)
