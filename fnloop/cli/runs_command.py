"""``fnloop runs``: the runs in a folder, what they reached, and in what they differ."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from fnloop.cli import config
from fnloop.cli.given import pictured
from fnloop.cli.messages import Problem, did_you_mean, printable, shown, usage, value_text
from fnloop.cli.runs import checkpoint_folders, newest_of
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
    """A run on the disk.

    Attributes:
        folder: Its folder.
        flags: Its configuration, but for the recipe, a class with its arguments one by one.
        status: How it stands, or what is wrong with it.
        cursor: The epoch that it is in, and the batches that it has drawn, as text.
        metrics: Of its best checkpoint, if one was monitored, else of its latest.
        monitor: The monitored metric, if there is one.
        latest: Its latest checkpoint.
    """

    folder: Path
    flags: Mapping[str, str]
    status: str
    cursor: tuple[str, str]
    metrics: Mapping[str, float]
    monitor: str | None
    latest: Path | None

    @classmethod
    def at(cls, folder: Path) -> FoundRun:
        """The run in a folder."""
        flags = dict(_flat(config.Config(folder / config.NAME).plain))
        flags = {name: text for name, text in flags.items() if name not in ("recipe", "folder")}
        folders = checkpoint_folders(folder)
        newest = newest_of(folders)
        if newest is None:
            return cls(folder, flags, "no checkpoint", ("", ""), {}, None, None)
        try:
            manifest = read_manifest(newest)
            chosen = next((path for place in folders if (path := best(place))), newest)
            favourite = read_manifest(chosen)
        except CheckpointError as error:
            return cls(folder, flags, f"damaged: {error}", ("", ""), {}, None, None)
        (status, epoch, count), monitor = standing(manifest), favourite["monitor"]
        metrics = dict(favourite["metrics"])
        if monitor:
            metrics[monitor["name"]] = monitor["value"]
        where = (str(epoch), str(count))
        return cls(folder, flags, status, where, metrics, monitor and monitor["name"], newest)


def run_runs(arguments: Namespace) -> int:
    """``fnloop runs [FOLDER ...]``."""
    plot = pictured(getattr(arguments, "plot", None))
    places = [Path(each) for each in arguments.folders or ["runs"]]
    runs = [FoundRun.at(folder) for place in places for folder in _folders(place)]
    if not runs:
        raise Problem(
            f"There is no run in {', '.join(map(shown, places))}. fnloop fit RECIPE.py makes one; "
            f"its folder has a file {config.NAME}."
        )
    metrics = _metrics(runs, getattr(arguments, "metric", None))
    print(printable(_table(runs, metrics, getattr(arguments, "sort", None))))
    if plot is not None:
        print(f"\nplot  {shown(_plotted(runs, metrics, Path(plot)))}")
    return 0


def _folders(place: Path) -> Iterator[Path]:
    """The folders of the runs at a place or below it."""
    if not place.is_dir():
        raise usage(f"There is no folder {shown(place)}.")
    if (place / config.NAME).is_file():
        yield place
        return
    for level in range(1, _LEVELS + 1):
        yield from sorted(file.parent for file in place.glob(f"{'*/' * level}{config.NAME}"))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """The entries of a configuration, those of a chosen class under names such as ``model.width``.

    >>> list(_flat({"lr": 0.1, "model": {"class_path": "Net", "init_args": {"width": 4}}}))
    [('lr', '0.1'), ('model', 'Net'), ('model.width', '4')]
    """
    for name, value in values.items():
        if isinstance(value, dict) and "class_path" in value:
            yield before + name, str(value["class_path"]).rpartition(".")[2]
            yield from _flat(value.get("init_args") or {}, f"{before}{name}.")
        else:
            yield before + name, value_text(value)


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
    header = ("run", "status", "epoch", "batches", *metrics, *differ)
    rows = [
        (
            shown(run.folder),
            run.status,
            *run.cursor,
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
    return _fitting(header, rows, 4 + len(metrics))


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
            if name in history:
                line = history.steps(name), history[name]
                curves.setdefault(name, {})[shown(run.folder)] = line
    if not curves:
        raise Problem("There is nothing to draw: no run has a history of these metrics.")
    draw_runs(curves, path)
    return path
