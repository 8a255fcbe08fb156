"""``--member``: one of the members of a sweep."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path

from fnloop.cli.messages import shown, usage
from fnloop.cli.sweep_folder import TABLE, Scores, Sweep
from fnloop.store.folders import badness
from fnloop.store.manifest import read_manifest
from fnloop.values.stacked import as_member

_OF_MEMBER = re.compile(r"(.+)\[(\d+)\]")
_MOST = 20
"""Members that a message lists."""


def by_member(found: Mapping[str, Mapping[str, float]], size: int) -> Scores:
    """Metrics by part of the data as those of each member.

    >>> by_member({"val": {"loss[0]": 3.0, "loss[1]": 2.0}}, 2)
    {'val/loss': [3.0, 2.0]}
    """
    scores = dict[str, dict[int, float]]()
    for part, row in found.items():
        for name, value in row.items():
            base, i = _whose(name)
            if i is not None:
                scores.setdefault(f"{part}/{base}", {})[i] = value
    whole = {name: own for name, own in scores.items() if len(own) == size}
    return {name: [own[i] for i in range(size)] for name, own in whole.items()}


def metrics_of(row: Mapping[str, float], member: int) -> dict[str, float]:
    """The metrics of a member, and those that are of none.

    >>> metrics_of({"loss[0]": 3.0, "loss[1]": 2.0, "recall[0][1]": 0.5, "turns": 8}, 1)
    {'loss': 2.0, 'recall[0]': 0.5, 'turns': 8}
    """
    whose = {name: _whose(name) for name in row}
    return {base: row[name] for name, (base, i) in whose.items() if i in (member, None)}


def _whose(name: str) -> tuple[str, int | None]:
    """The name of a metric and the number of the member that it is of, if of one."""
    found = _OF_MEMBER.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def best_member(folder: Path, judged: Path | None, size: int) -> int | None:
    """The best member of a sweep: the first in its table, and until there is one, that with the
    best monitored metric in this checkpoint; None if neither tells.
    """
    file = folder / TABLE
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.reader(lines))
        return next((int(member) for member, *_, rank in rows if rank == "1"), None)
    manifest = None if judged is None else read_manifest(judged)
    monitor = manifest and manifest["monitor"]
    if not (manifest and monitor):
        return None
    row, name = manifest["metrics"], monitor["name"]
    values = [row.get(f"{name}[{i}]", math.nan) for i in range(size)]
    if all(map(math.isnan, values)):
        return None
    return min(range(size), key=lambda i: badness(values[i], monitor["mode"]))


def chosen_member(
    asked: str | None, folder: Path, judged: Path | None, size: int, sweep: Sweep | None
) -> int:
    """The number of the member that ``--member`` names.

    Args:
        asked: What was given for it.
        folder: Of the sweep, or its checkpoint.
        judged: Its newest checkpoint with a monitored metric.
        size: How many members there are.
        sweep: What is known of them.

    Raises:
        Problem: It names none.
    """
    if asked is None:
        listed = f"\n{sweep.table({}, range(min(size, _MOST)))}" if sweep else ""
        more = f"\nand {size - _MOST} more" if listed and size > _MOST else ""
        raise usage(
            f"{shown(folder)} has {size} members, and this is for one of them: --member I, with I "
            f"from 0 to {size - 1}, or --member best.{listed}{more}"
        )
    if asked == "best":
        best = best_member(folder, judged, size)
        if best is None:
            raise usage(
                f"--member best: the best of {shown(folder)} is not known. fnloop sweep writes it "
                f"to {TABLE} when it ends, and until then a checkpoint with a monitored metric "
                f"tells. Give a number, from 0 to {size - 1}."
            )
        return best
    try:
        return as_member(int(asked), size)
    except ValueError:
        raise usage(
            f"--member {asked}: expected a number, from 0 to {size - 1}, or best."
        ) from None
    except IndexError as error:
        raise usage(str(error)) from None


def refuse_member(asked: str | None, folder: Path) -> None:
    """Refuse ``--member`` for what has no members.

    Raises:
        Problem: It was given.
    """
    if asked is not None:
        raise usage(
            f"--member {asked} is for a sweep, and {shown(folder)} is of a single run. Leave it "
            "out."
        )
