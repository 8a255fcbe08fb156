"""``fnloop runs``: the runs in a folder, what they reached, and in what they differ."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace

from fnloop.cli import config
from fnloop.cli.given import pictured
from fnloop.cli.messages import Problem, did_you_mean, printable, shown, usage, value_text
from fnloop.cli.runs import checkpoint_folders, newest_monitored, newest_of
from fnloop.cli.sweep_folder import NAME, Sweep, sweep_in
from fnloop.cli.sweep_members import best_member, metrics_of
from fnloop.effects.spans import number
from fnloop.loop.history import History
from fnloop.loop.runs_plot import draw_runs
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.files import files_for
from fnloop.store.folders import best
from fnloop.store.manifest import read_manifest, standing
from fnloop.store.pages import attached
from fnloop.trees.equal import table

_LONGEST = 40
"""Letters of a cell."""

_LEVELS = 4
"""How deep below a folder runs are looked for."""


class FoundRun(NamedTuple):
    """A run on the disk, or a sweep, by its best member.

    Attributes:
        folder: Its folder.
        flags: Its configuration, but for the recipe, a class with its arguments one by one.
        status: How it stands, or what is wrong with it.
        cursor: The epoch that it is in, and the batches that it has drawn, as text.
        metrics: Of its best checkpoint, if one was monitored, else of its latest; of a sweep the
            latest that was monitored.
        monitor: The monitored metric, if there is one.
        latest: Its latest checkpoint.
        member: Of a sweep, which of its members is the best, if that is known.
        members: How many a sweep has.
    """

    folder: Path
    flags: Mapping[str, str]
    status: str
    cursor: tuple[str, str] = ("", "")
    metrics: Mapping[str, float] = {}
    monitor: str | None = None
    latest: Path | None = None
    member: int | None = None
    members: int | None = None

    @classmethod
    def at(cls, folder: Path) -> FoundRun:
        """The run or the sweep in a folder; one that cannot be read says so in its status."""
        try:
            return cls._read(folder)
        except Problem as error:
            return cls(folder, {}, f"damaged: {error}")

    @classmethod
    def _read(cls, folder: Path) -> FoundRun:
        sweep, folders = sweep_in(folder), checkpoint_folders(folder)
        newest = newest_of(folders)
        members = None if sweep is None else sweep.size
        try:
            judged = None if sweep is None else newest_monitored(folders)
            member = None if sweep is None else best_member(folder, judged, sweep.size)
            flags = _settings(folder, sweep, member)
            if newest is None:
                return cls(folder, flags, "no checkpoint", member=member, members=members)
            manifest = read_manifest(newest)
            if sweep is None:
                judged = next((path for place in folders if (path := best(place))), None)
            favourite = manifest if judged is None else read_manifest(judged)
        except CheckpointError as error:
            flags = _settings(folder, sweep, None)
            return cls(folder, flags, f"damaged: {error}", members=members)
        (status, epoch, count), monitor = standing(manifest), favourite["monitor"]
        metrics = dict(favourite["metrics"])
        if sweep is not None:
            metrics = {} if member is None else metrics_of(metrics, member)
        elif monitor:
            metrics[monitor["name"]] = monitor["value"]
        name = monitor and monitor["name"]
        where = (str(epoch), str(count))
        return cls(folder, flags, status, where, metrics, name, newest, member, members)

    @property
    def which(self) -> str:
        """Of a sweep, whose row this is, as text."""
        if self.members is None:
            return "-"
        return f"{'?' if self.member is None else self.member} of {self.members}"

    @property
    def title(self) -> str:
        """What its curves are called."""
        name = shown(self.folder)
        return name if self.member is None else f"{name}, member {self.member}"

    def curve(self, history: History, metric: str) -> tuple[list[int], list[float]] | None:
        """Steps and values of a metric, of a sweep those of its member; None if there are none."""
        name = metric if self.member is None else f"{metric}[{self.member}]"
        return (history.steps(name), history[name]) if name in history else None


def _settings(folder: Path, sweep: Sweep | None, member: int | None) -> dict[str, str]:
    """The flags of a run, of a member of a sweep, or of all its members, as text."""
    if sweep is None:
        flags = config.Config(folder / config.NAME).plain
    elif member is None:
        lists = {name: ",".join(map(str, values)) for name, values in sweep.lists.items()}
        flags = config.placed(sweep.flags, lists)
    else:
        flags = config.placed(sweep.flags, sweep.place(member)[0])
    left_out = ("recipe", "folder")
    return {name: value_text(v) for name, v in config.flat(flags) if name not in left_out}


def run_runs(arguments: Namespace) -> int:
    """``fnloop runs [FOLDER ...]``."""
    plot = pictured(getattr(arguments, "plot", None))
    places = [Path(each) for each in arguments.folders or ["runs"]]
    runs = [FoundRun.at(folder) for place in places for folder in _folders(place)]
    if not runs:
        raise Problem(
            f"There is no run in {', '.join(map(shown, places))}. fnloop fit RECIPE.py makes one, "
            f"whose folder has a file {config.NAME}; that of fnloop sweep has a file {NAME}."
        )
    metrics = _metrics(runs, getattr(arguments, "metric", None))
    print(printable(_table(runs, metrics, getattr(arguments, "sort", None))))
    if plot is not None:
        print(f"\nplot  {shown(_plotted(runs, metrics, Path(plot)))}")
    return 0


def _folders(place: Path) -> Iterator[Path]:
    """The folders of the runs and sweeps at a place or below it."""
    if not place.is_dir():
        raise usage(f"There is no folder {shown(place)}.")
    for level in range(_LEVELS + 1):
        names = [f"{'*/' * level}{name}" for name in (config.NAME, NAME)]
        yield from (found := sorted(file.parent for name in names for file in place.glob(name)))
        if not level and found:
            return


def _metrics(runs: Sequence[FoundRun], asked: str | None) -> list[str]:
    """The metrics to show: those that are asked for, else monitored ones, else the loss."""
    known = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if asked is None:
        monitored = list(dict.fromkeys(run.monitor for run in runs if run.monitor))
        return monitored or [name for name in ("loss",) if name in known]
    for name in (names := asked.split(",")):
        if name not in known:
            hint = did_you_mean(name, known)
            raise usage(f"No run reports {name!r}.{hint} There are: {', '.join(known) or 'none'}.")
    return names


def _table(runs: Sequence[FoundRun], metrics: Sequence[str], by: str | None) -> str:
    names = dict.fromkeys(name for run in runs for name in run.flags)
    differ = [name for name in names if len({run.flags.get(name, "-") for run in runs}) > 1]
    swept = ["member"] if any(run.members for run in runs) else []
    header = ("run", "status", "epoch", "batches", *swept, *metrics, *differ)
    rows = [
        (
            shown(run.folder),
            run.status,
            *run.cursor,
            *(run.which for _ in swept),
            *(number(run.metrics[name]) if name in run.metrics else "-" for name in metrics),
            *(run.flags.get(name, "-") for name in differ),
        )
        for run in runs
    ]
    if by is not None:
        if by not in header:
            raise usage(
                f"--sort {by}: there is no such column. There are: {', '.join(header)}."
                + did_you_mean(by, header)
            )
        rows.sort(key=lambda row: _key(row[header.index(by)]))
    return _fitting(header, rows, 4 + len(swept) + len(metrics))


def _fitting(header: Sequence[str], rows: Sequence[tuple[str, ...]], least: int) -> str:
    """A table of as many columns as the terminal is wide; the names of the others below."""
    columns = [[_cut(cell) for cell in column] for column in zip(header, *rows, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    ends = accumulate(max(map(len, column)) + 2 for column in columns)
    kept = max(least, sum(end - 2 <= width for end in ends))
    first, *others = zip(*columns[:kept], strict=True)
    more = f"\nalso different  {', '.join(header[kept:])}" if kept < len(header) else ""
    return table(first, others) + more


def _cut(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 3]}..."


def _key(cell: str) -> tuple[float, str]:
    """Numbers in their order, then texts."""
    try:
        value = float(cell)
    except ValueError:
        return math.inf, cell
    return (value, "") if not math.isnan(value) else (math.inf, cell)


def _history(checkpoint: Path) -> History:
    """The history of a run until a checkpoint; empty if it kept none."""
    history = History()
    memos, _ = attached(read_manifest(checkpoint), checkpoint.parent, files_for(checkpoint))
    if "history" in memos:
        history.recall(memos["history"])
    return history


def _plotted(runs: Sequence[FoundRun], metrics: Sequence[str], path: Path) -> Path:
    curves: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for run in runs:
        if run.latest is None:
            continue
        history = _history(run.latest)
        for name in metrics:
            line = run.curve(history, name)
            if line is not None:
                curves.setdefault(name, {})[run.title] = line
    if not curves:
        raise Problem("There is nothing to draw: no run has a history of these metrics.")
    draw_runs(curves, path)
    return path
