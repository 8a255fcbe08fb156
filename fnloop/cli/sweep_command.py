"""``fnloop sweep``: a recipe for several values of its flags, as a population."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.cli import run_report, sweep_report
from fnloop.cli.config import placed
from fnloop.cli.given import Given, given_in
from fnloop.cli.messages import Problem, describe, shown, usage, value_text
from fnloop.cli.recipe import Recipe
from fnloop.cli.recipe_limits import limits_of
from fnloop.cli.runs import checkpoint_folders, folder_of, newest_of, told
from fnloop.cli.sweep_folder import NAME, TABLE, Lists, Sweep, sweep_in
from fnloop.cli.swept import grid_of, taken_lists
from fnloop.loop.fit import fit
from fnloop.loop.history import History
from fnloop.transforms.vmap_errors import is_of_vmap
from fnloop.trees.show import numbers_text
from fnloop.values.stacked import member
from fnloop.values.state import State

_SIGNALS = {"SIGTERM": 143, "SIGHUP": 129}


class _Job(NamedTuple):
    """A sweep to be done.

    Attributes:
        given: The recipe on the command line.
        recipe: That of the first member.
        sweep: The members.
        folder: Of the sweep; None if nothing is saved.
        start: The checkpoint to resume from.
    """

    given: Given
    recipe: Recipe
    sweep: Sweep
    folder: Path | None
    start: Path | None

    @property
    def flags(self) -> dict[str, Any]:
        """All flags, and lists of those that are swept."""
        return placed(self.sweep.flags, self.sweep.lists)


def run_sweep(arguments: Sequence[str]) -> int:
    """``fnloop sweep RECIPE.py --FLAG A,B,C``."""
    lists: Lists = {}
    given = given_in("sweep", arguments, lambda function, rest: taken_lists(function, rest, lists))
    options, plot = given.flags.options, given.picture()
    seeds: int = options.get("seeds", 1)
    if seeds < 1:
        raise usage(f"--seeds takes a number of runs, 1 or more, got {seeds}.")
    if (chunk := options.get("chunk", 1)) < 1:
        raise usage(f"--chunk takes a number of members, 1 or more, got {chunk}.")
    if not lists and seeds == 1:
        raise usage(_no_list(given))
    if plot is not None and len(lists) not in (1, 2):
        raise usage(f"--plot draws a result over one or two swept flags, and {len(lists)} are.")
    job = _job(given, lists, seeds, arguments)
    state, history = _trained(job, job.sweep.population(job.recipe.step))
    if "SIGHUP" in history.reason:  # nobody can read what is printed
        return _SIGNALS["SIGHUP"]
    print(_outcome(job, history), flush=True)
    if "SIGTERM" in history.reason:
        return _SIGNALS["SIGTERM"]
    found = sweep_report.scored(job.recipe, state, history, job.sweep.size)
    if found is not None:
        ranked = sweep_report.Ranked(job.recipe, job.sweep, found)
        print(f"\n{ranked.title}\n{ranked.table()}")
        rows = [("best", ranked.best_text()), *[("note", text) for text in ranked.notes()]]
        if job.folder is not None:
            ranked.write(job.folder / TABLE)
            rows.append(("table", shown(job.folder / TABLE)))
        if plot is not None:
            ranked.plot(plot)
            rows.append(("plot", shown(Path(plot))))
        print(f"\n{run_report.columns(rows)}", flush=True)
    return 130 if history.status == "interrupted" else 0


def _job(given: Given, lists: Lists, seeds: int, arguments: Sequence[str]) -> _Job:
    """The sweep, in a folder that is free, or holds the same one."""
    options, changes = given.flags.options, _own_folder(given, arguments)
    kinds = given.flags.values
    recipe, numbers = grid_of(given, lists, {n: type(kinds[n])(v) for n, v in changes.items()})
    flags = {**given.flags.plain, **changes}
    each = [recipe.seed + i for i in range(seeds)]
    loop, chunk = bool(options.get("loop")), options.get("chunk")
    sweep = Sweep(given.file, flags, lists, each, numbers, loop, chunk)
    folder = folder_of(recipe)
    folder = None if folder is None else folder.absolute()
    start = newest_of(checkpoint_folders(folder, recipe))
    if start is not None and not options.get("overwrite"):
        place = folder or start.parent
        if not options.get("resume"):
            raise usage(
                f"{shown(place)} has a run already, which is not overwritten. "
                "--resume goes on with it, if it is this sweep; --overwrite deletes its "
                "checkpoints; another folder keeps both."
            )
        there = sweep_in(place)
        if there is None or not sweep.goes_on_with(there):
            raise usage(
                f"{shown(place)} has another run than this sweep, so it cannot be resumed "
                f"here. {shown(place / NAME)} has the values of a sweep: give the same, in their "
                "order."
            )
    return _Job(given, recipe, sweep, folder, start if options.get("resume") else None)


def _own_folder(given: Given, arguments: Sequence[str]) -> dict[str, Any]:
    """The flag of the folder with a value for the sweep, unless it was given."""
    folder = folder_of(given.recipe())
    texts = {n: value for n, value in given.flags.plain.items() if isinstance(value, str)}
    for name, value in texts.items():
        said = [a.partition("=")[0].replace("-", "_") == f"__{name}" for a in arguments]
        if folder is not None and Path(value) == folder and not any(said):
            return {name: f"{value}-sweep"}
    return {}


def _trained(job: _Job, many: Any) -> tuple[State, History]:
    recipe = job.recipe
    limits = limits_of(recipe)
    try:
        state = many.init(recipe.model, seed=recipe.seed)
        print(_summary(job, state), file=sys.stderr, flush=True)
        if job.folder is not None:
            job.sweep.write(job.folder)
        return fit(
            many,
            state,
            recipe.data,
            **limits,
            callbacks=recipe.callbacks,
            resume=None if job.start is None else job.start.parent,
            config={"recipe": str(job.given.file), **job.flags},
            overwrite=bool(job.given.flags.options.get("overwrite")),
        )
    except Exception as error:
        text = describe(error)
        if is_of_vmap(error):
            text += "\nOn the command line: fnloop sweep ... --loop"
        raise Problem(text) from error


def _summary(job: _Job, state: State) -> str:
    values = {n: [v] for n, v in job.sweep.flags.items()} | job.sweep.lists
    flags = {name: ",".join(map(value_text, each)) for name, each in values.items()}
    numbers = job.sweep.numbers
    swept = [f"{n}: {numbers_text([*dict.fromkeys(row)])}" for n, row in numbers.items()]
    seeds = len(job.sweep.seeds)
    runs = [f"{seeds} seeds"] if seeds > 1 or not swept else []
    how = "new" if job.start is None else f"resumed from {told(job.start)}"
    rows = [
        ("recipe", run_report.recipe_text(job.given.file, flags)),
        ("model", f"{run_report.model_text(member(state, 0))}, {job.sweep.size} times"),
        ("sweep", "; ".join([*swept, *runs])),
        ("data", run_report.data_text(job.recipe.data)),
        ("folder", f"{shown(job.folder)} ({how})" if job.folder else "none: nothing is saved"),
    ]
    return run_report.columns(rows)


def _outcome(job: _Job, history: History) -> str:
    title = history.status + (f": {history.reason}" if history.status == "stopped" else "")
    rows = list[tuple[str, str]]()
    newest = newest_of(checkpoint_folders(job.folder, job.recipe))
    if newest is not None:
        rows.append(("latest", told(newest)))
    if job.folder is not None:
        rows += run_report.write_history(history, job.folder)
    rows += run_report.where(job.recipe)
    if history.status == "interrupted" and newest is not None:
        rows.append(("go on", "the same command with --resume"))
    return f"\n{title}\n{run_report.columns(rows)}" if rows else f"\n{title}"


def _no_list(given: Given) -> str:
    kinds: Mapping[str, Any] = given.flags.values
    names = [name for name, value in kinds.items() if type(value) is float] or ["FLAG"]
    name = names[0]
    value = kinds.get(name) or 1e-3
    listed = f"{value / 10:g},{value:g},{value * 10:g}"
    texts = [n for n, v in kinds.items() if isinstance(v, str) and "," in v]
    also = f" --{texts[0]} takes text, so its commas are a part of it." if texts else ""
    return (
        f"Nothing is swept: give a flag a list of numbers, as in fnloop sweep "
        f"{shown(given.file)} --{name} {listed}, or --seeds N.{also}"
    )
