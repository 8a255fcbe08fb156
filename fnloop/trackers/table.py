"""A tracker that writes CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.run_files import append, claim, end_last_line, is_same, local, replace


class CSV(Tracker):
    """Write a run to a CSV file.

    Columns are ``step``, ``epoch`` and the metrics, in the order in which they first appear; for a
    new metric, the file is rewritten with one more column. An empty cell means that the metric was
    not reported. Hyperparameters are not written. A new run never writes to an earlier run's file,
    but to ``<stem>-2.csv``, with a warning. A resumed run goes on in its file, without the rows
    that a killed run had written after its last checkpoint.

    Args:
        path: The file; missing folders are created.

    Attributes:
        path: The file that is written; absolute from `open` on.

    >>> from fnloop.trackers import CSV
    >>> from fnloop import track
    >>> effect = track(CSV("runs/a.csv"), every=10)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path, "fl.trackers.CSV")
        self._asked = self.path
        self._columns: list[str] = []

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        asked = self._asked.absolute()  # the working directory may change during the run
        going_on = run is not None and is_same(asked.with_name(run), self.place_before)
        self.path = self.place = asked.with_name(run) if run and going_on else claim(asked)
        self.id = self.path.name
        if going_on:
            end_last_line(self.path)
        rows = _read(self.path)
        self._columns = rows[0] if rows else ["step", "epoch"]
        self._append([])

    def rewind(self, step: int) -> None:
        header, *rows = _read(self.path)
        place = header.index("step")
        kept = [row for row in rows if not _is_after(row[place : place + 1], step)]
        if len(kept) < len(rows):
            replace(self.path, _text([header, *kept]))

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        row = {**numbers, "step": step, "epoch": epoch}
        new = [name for name in row if name not in self._columns]
        if new:
            self._widen(new)
        self._append([[row.get(name, "") for name in self._columns]])

    def _widen(self, new: list[str]) -> None:
        """Add columns; the file is replaced by an atomic rename."""
        columns = [*self._columns, *new]
        rows = _read(self.path)[1:] if self.path.exists() else []
        padded = [columns, *(row + [""] * (len(columns) - len(row)) for row in rows)]
        replace(self.path, _text(padded))
        self._columns = columns

    def _append(self, rows: Iterable[Iterable[Any]]) -> None:
        append(self.path, _text(rows), beginning=_text([self._columns]))


def _is_after(cell: list[str], step: int) -> bool:
    return bool(cell) and cell[0].isdecimal() and int(cell[0]) > step


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _text(rows: Iterable[Iterable[Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
