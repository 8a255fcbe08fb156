"""A tracker that writes CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.run_files import append, claim, end_last_line


class CSV(Tracker):
    """Write a run to a CSV file.

    Columns are ``step``, ``epoch`` and the metrics, in the order in which they first appear; for a
    new metric, the file is rewritten with one more column. An empty cell means that the metric was
    not reported. Hyperparameters are not written. A new run never writes to an earlier run's file,
    but to ``<stem>-2.csv``, with a warning. A resumed run appends; of rows with the same step, the
    last one counts.

    Args:
        path: The file; missing folders are created.

    Attributes:
        path: The file that is written.

    >>> from fnloop.trackers import CSV
    >>> from fnloop import track
    >>> effect = track(CSV("runs/a.csv"), every=10)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._asked = self.path
        self._columns: list[str] = []

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        asked = self._asked.absolute()
        going_on = run is not None and asked.with_name(run).is_file()
        self.path = asked.with_name(run) if run and going_on else claim(asked)
        self.id = self.path.name
        if going_on:
            end_last_line(self.path)
        rows = _read(self.path)
        self._columns = rows[0] if rows else ["step", "epoch"]
        self._append([])

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
        scratch = self.path.with_name(self.path.name + ".tmp")
        try:
            scratch.unlink(missing_ok=True)
            append(scratch, _text(padded))
            os.replace(scratch, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
        self._columns = columns

    def _append(self, rows: Iterable[Iterable[Any]]) -> None:
        append(self.path, _text(rows), beginning=_text([self._columns]))


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _text(rows: Iterable[Iterable[Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
