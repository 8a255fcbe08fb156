"""``History``: the metrics of a run as rows."""

from __future__ import annotations

import contextlib
import difflib
import html
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from fnloop.effects.effect import Effect, Run
from fnloop.effects.page import Page
from fnloop.effects.points import Point, Points, reason_in
from fnloop.effects.spans import grouped, span
from fnloop.loop.plot import draw
from fnloop.transforms.population_stage import swept_values
from fnloop.trees.json_codec import from_text, to_text
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.merging import numbers_of
from fnloop.values.metrics import Metrics
from fnloop.values.stacked import members_of
from fnloop.values.state import State

Row = dict[str, Any]
_VALUES = 4096
"""Values in a page of rows: what each checkpoint writes again is less than that."""


class History(Effect):
    """An effect that keeps a run's metrics as rows, and its last states; `fl.fit` returns one.

    A row is the merge of all metrics since the row before: one every `every` batches, one at the
    end of each epoch, one at the end of the run, and one at each step with validation metrics. It
    is a dict of ``"epoch"`` (counted from 1), ``"step"`` (batches drawn so far) and the metrics
    that were reported. Metrics stay on the device until they are read. A resumed run keeps the
    earlier rows.

    Args:
        every: Batches from one row to the next; default 50, or the whole epoch where an epoch has
            fewer than 100.
        states: How many of the last states to keep, each as it was after a step and its callbacks.
            Keeping a state of an eager step copies nothing. A compiled step that donates, as in
            `fl.fit`, copies the tensors that it would overwrite.

    Attributes:
        status: ``"running"``, then how it ended: ``"completed"``, ``"stopped"``,
            ``"interrupted"`` or ``"failed"``.
        reason: Why it stopped, if a callback asked for it; else empty.
        resumed: How ``fl.fit(..., resume=folder)`` resumed it; else None.
        seconds: How long it has run so far, with what it was resumed from.
        swept: Of an `fl.sweep`, the value of each member by hyperparameter.

    >>> import torch
    >>> from fnloop import Mean
    >>> from fnloop.data import Cursor
    >>> from fnloop.values.start import start
    >>> state, history = start(torch.nn.Linear(2, 1)), History(every=2)
    >>> for count in (1, 2, 3, 4):
    ...     state = state.replace(cursor=Cursor(0, count, count).tensor())
    ...     history(state, {"loss": Mean(8.0 * count, 1)})
    >>> history["loss"], history.steps("loss")
    ([12.0, 28.0], [2, 4])
    >>> history[-1]
    {'epoch': 1, 'step': 4, 'loss': 28.0}

    The last states, to go back by hand:

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> history, state = History(states=3), step.init(torch.nn.Linear(2, 1))
    >>> for state, _ in fl.run(step, state, [torch.ones(2, 2)], steps=9, callbacks=[history]):
    ...     pass
    >>> [int(state.step) for state in history.states]
    [7, 8, 9]
    >>> state = history.states[-3]
    """

    name = "history"
    ranks = "all"

    def __init__(self, every: int | None = None, states: int = 0) -> None:
        self.status = "running"
        self.reason = ""
        self.resumed: Any = None
        self.swept: dict[str, list[float]] = {}
        self._members: int | None = None
        self._run: Run | None = None
        self._spent, self._began = 0.0, None
        self._states: deque[State] = deque(maxlen=as_count(states, "History(states=...)"))
        self._points = Points(every)
        self._latest: Metrics = {}
        self._rows: list[Row] = []
        self._pages: list[Page] = []  # the first `_paged` rows, which no longer change
        self._paged = 0
        self._waiting: list[Point] = []
        self._last: list[Row] = []  # the row of a point that was cut short and may continue

    def open(self, run: Run) -> None:
        self.status, self.reason, self._run = "running", "", run
        self._began = time.monotonic()
        self.swept, self._members = swept_values(run.step), members_of(run.state)
        self._points.open(run.batches, run.measured, run.reported)
        if not self._points.goes_on(run.state):
            self._rows, self._last = self.rows, []
            self._points.rest()

    def before(self, metrics: Metrics) -> None:
        self._waiting.append(Point(0, 0, dict(metrics)))

    def __call__(self, state: State, metrics: Metrics) -> None:
        self._latest, self._last = metrics, []
        self._states.append(state)
        point = self._points.add(state, metrics)
        if point is not None:
            self._waiting.append(point)
            if len(self._waiting) >= 256:
                self._settle()

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return bool(self._states.maxlen)

    def close(self, status: str) -> None:
        self.status, self._spent, self._began = status, self.seconds, None
        self.reason = reason_in(self._latest, status) or (self._run.reason if self._run else "")
        self._last = self._cut(self._run.last if self._run else {})
        self._points.close()
        self._run = None

    def release(self) -> None:
        if self._run is not None:  # `close` was broken off, perhaps by a signal handler
            with contextlib.suppress(Exception):  # that it failed has been told
                self.close(self._run.status)

    def memo(self) -> Any:
        """Complete rows by column, the row that was cut short, and the metrics merged in it.

        Missing values are None. However long the run, all rows but the last are in pages.
        """
        self._settle()
        self._fill_pages()
        return {
            "pages": [*self._pages],
            "rows": _columns(self._rows[self._paged :]),
            "cut": _columns(self._last or self._cut()),
            "window": self._points.memo(),
            "always": self._points.always,
            "seconds": self.seconds,
        }

    def recall(self, memo: Any) -> None:
        self._waiting, self._rows = [], []
        self._spent = float(memo["seconds"])
        self._pages = [page for page in memo.get("pages", ()) if isinstance(page, Page)]
        for page in self._pages:
            self._rows += _from_columns(from_text(page.decode()))
        self._paged = len(self._rows)
        self._rows += _from_columns(memo["rows"])
        goes_on = bool(memo["window"])  # else `cut` is a last validation, which is no part of it
        self._last = _from_columns(memo["cut"]) if goes_on else []
        self._points.recall(memo["window"], memo.get("always"))

    @property
    def seconds(self) -> float:
        return self._spent + (0.0 if self._began is None else time.monotonic() - self._began)

    @property
    def rows(self) -> list[Row]:
        """All rows, oldest first. Reading them waits for the device."""
        self._settle()
        return [*self._rows, *self._last]

    @property
    def states(self) -> tuple[State, ...]:
        """The last states, oldest first."""
        return tuple(self._states)

    @property
    def names(self) -> list[str]:
        """The metrics, in the order in which they first appeared."""
        return _names(self.rows)

    def steps(self, name: str) -> list[int]:
        """At how many batches drawn `name` was reported; as long as ``history[name]``."""
        return [row["step"] for row in self._with(name)]

    @overload
    def __getitem__(self, key: str) -> list[float]: ...
    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> list[Row]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        """The reported values of a metric, by name; or rows, by position."""
        if isinstance(key, str):
            return [row[key] for row in self._with(key)]
        return self.rows[key]

    def __contains__(self, name: object) -> bool:
        return any(name in row for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def table(self, last: int | None = 10) -> str:
        """The last rows as text.

        Args:
            last: Rows; None for all.
        """
        lines = _cells(self.rows, last)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def to_pandas(self) -> Any:
        """A pandas DataFrame with one line a row; nan where a metric was not reported.

        Raises:
            ImportError: Where pandas is missing.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        except ImportError as error:
            raise ImportError(
                "history.to_pandas() needs pandas, which is not installed: pip install pandas. "
                "history.rows is the same as a list of dicts."
            ) from error
        return pandas.DataFrame(self.rows, columns=["epoch", "step", *self.names])

    def plot(self, path: str | Path | None = None, names: Sequence[str] | None = None) -> Any:
        """Draw the curves: one panel a metric, training and validation together.

        Of an `fl.ensemble` all members are drawn, and their median. In an `fl.sweep` the color of a
        member says its value, and training and validation are side by side. A curve ends with a
        cross where it is not finite from there on.

        Args:
            path: Image file to write (.png, .pdf, .svg); default none.
            names: Metrics to draw, without prefix (``val/``); default all that change.

        Returns:
            A matplotlib ``Figure``. As the last value of a notebook's cell it is shown, once.

        Raises:
            ImportError: Where matplotlib is missing.
        """
        curves = {name: (self.steps(name), self[name]) for name in self.names}
        return draw(curves, path, names, self._members, self.swept)

    def __repr__(self) -> str:
        outcome = f"{self.status} ({self.reason})" if self.reason else self.status
        return (
            f"History: {outcome}, {len(self)} rows\n{self.table()}"
            if len(self)
            else f"History: {outcome}"
        )

    def _repr_html_(self) -> str:
        title, *_ = repr(self).split("\n", 1)
        header, *lines = ([html.escape(cell) for cell in line] for line in _cells(self.rows, 10))
        head = "".join(f"<th>{cell}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines
        )
        return (
            f"<div><p>{html.escape(title)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _cut(self, last: Metrics | None = None) -> list[Row]:
        """The row of the unfinished point, with the metrics of a last validation."""
        point = self._points.peek(last)
        return self._last if point is None else _rows([point])

    def _fill_pages(self) -> None:
        begin, values = self._paged, 0
        for end in range(begin, len(self._rows)):
            values += len(self._rows[end])
            if values >= _VALUES:
                text = to_text(_columns(self._rows[begin : end + 1]))
                self._pages.append(Page(text.encode()))
                begin, values = end + 1, 0
        self._paged = begin

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._rows += _rows(waiting)

    def _with(self, name: str) -> list[Row]:
        found = [row for row in self.rows if name in row]
        if not found:
            known = self.names
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise KeyError(
                f"No metric {name!r} was reported; there are: {', '.join(known) or 'none'}.{hint}"
            )
        return found


def _rows(points: Sequence[Point]) -> list[Row]:
    many = numbers_of(point.metrics for point in points)
    return [
        {"epoch": point.epoch, "step": point.step, **numbers}
        for point, numbers in zip(points, many, strict=True)
    ]


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = ["epoch", "step", *_names(rows)]
    return {name: [row.get(name) for row in rows] for name in names}


def _from_columns(columns: dict[str, list[Any]]) -> list[Row]:
    rows: list[Row] = []
    for i in range(len(columns["step"])):
        row = {name: column[i] for name, column in columns.items() if column[i] is not None}
        numbers = {name: float(value) for name, value in row.items()}
        rows.append({**numbers, "epoch": int(row["epoch"]), "step": int(row["step"])})
    return rows


def _names(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in ("epoch", "step")]


def _cells(rows: Sequence[Row], last: int | None) -> list[list[str]]:
    columns = grouped(_names(rows))
    shown = rows if last is None else rows[max(len(rows) - last, 0) :]
    lines = [["epoch", "step", *columns]]
    for row in shown:
        values = [[row[name] for name in names if name in row] for names in columns.values()]
        cells = [span(found) if found else "" for found in values]
        lines.append([str(row["epoch"]), str(row["step"]), *cells])
    return lines
