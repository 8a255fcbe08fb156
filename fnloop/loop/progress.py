"""``progress``: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from fnloop.effects.effect import Effect, Run
from fnloop.effects.points import reason_in
from fnloop.values.cursor import Cursor, epoch_of
from fnloop.values.merging import merge_all, numbers_of
from fnloop.values.metrics import Metrics
from fnloop.values.state import State


class progress(Effect):
    """Show a run's progress, speed and metrics.

    On a terminal and in a notebook it is a bar, drawn ten times a second at most. Elsewhere (a
    file, a batch system) it is a plain line every `every_seconds`. Both end with one line that says
    how the run ended. A number is the merge of the metrics since it was last shown.

    Args:
        every_seconds: Seconds from one plain line to the next.
        names: Metrics to show, in this order; default all.
        file: Where to write; default ``sys.stderr`` as it is when the run starts.

    >>> effect = progress(every_seconds=60, names=["loss", "val/loss"])
    """

    name = "progress"

    def __init__(
        self,
        every_seconds: float = 10.0,
        names: Sequence[str] | None = None,
        file: TextIO | None = None,
    ) -> None:
        if not every_seconds > 0:
            raise ValueError(
                f"every_seconds={every_seconds}: expected a number of seconds above 0."
            )
        self.every_seconds = every_seconds
        self.names = names
        self.file = file

    def open(self, run: Run) -> None:
        self._run, self._out = run, self.file or sys.stderr
        self._start = Cursor.of(run.state.cursor)
        self._place = _Place(self._start, run.batches, run.total)
        self._cursor = run.state.cursor
        self._parts: list[Metrics] = []
        self._latest: Metrics = {}
        self._shown: dict[str, float] = {}
        self._began = self._last_time = time.perf_counter()
        self._last_count = self._start.count
        bar = _bar_class(self._out)
        self._bar: Any = bar and bar(
            total=run.total,
            file=self._out,
            dynamic_ncols=True,
            mininterval=0.0,
            miniters=1,
            unit="batch",
        )
        self._interval = 0.1 if bar else self.every_seconds
        self._due = self._began + (0.0 if bar else self._interval)

    def __call__(self, state: State, metrics: Metrics) -> None:
        self._parts.append(metrics)
        self._cursor = state.cursor
        if time.perf_counter() >= self._due:
            self._show()
        elif len(self._parts) >= 256:
            self._latest = metrics
            self._parts = [merge_all(self._parts)]

    def close(self, status: str) -> None:
        if not hasattr(self, "_bar"):
            return
        if self._parts:
            self._latest = self._parts[-1]
        cursor = self._read()
        self._shown.update(numbers_of([self._run.last])[0])
        reason = reason_in(self._latest, status) or self._run.reason
        seconds = time.perf_counter() - self._began
        drawn = cursor.count - self._start.count
        line = "  ".join(
            [
                f"{status} ({reason})" if reason and status not in reason else reason or status,
                self._place.text(cursor),
                f"{drawn} batches in {_duration(seconds)}",
                *(f"{name} {_number(value)}" for name, value in self._chosen().items()),
            ]
        )
        if self._bar is not None:
            self._draw(cursor)
            self._bar.close()
        print(line, file=self._out, flush=True)
        del self._bar

    def _show(self) -> None:
        cursor = self._read()
        if self._bar is not None:
            self._draw(cursor)
        else:
            now = time.perf_counter()
            rate = (cursor.count - self._last_count) / max(now - self._last_time, 1e-9)
            numbers = [f"{name} {_number(value)}" for name, value in self._chosen().items()]
            line = "  ".join([self._place.text(cursor), *numbers, f"{_number(rate)} it/s"])
            print(line, file=self._out, flush=True)
            self._last_time, self._last_count = now, cursor.count
        self._due = time.perf_counter() + self._interval

    def _read(self) -> Cursor:
        """Read the metrics and the cursor; waits for the device."""
        if self._parts:
            self._latest = self._parts[-1]
            # Training metrics are merged since the last display; validation shows the latest.
            latest = {name: part[name] for part in self._parts for name in part if "/" in name}
            self._shown.update(numbers_of([{**merge_all(self._parts), **latest}])[0])
            self._parts = []
        return Cursor.of(self._cursor)

    def _draw(self, cursor: Cursor) -> None:
        self._bar.set_description_str(self._place.epoch(cursor), refresh=False)
        numbers = ", ".join(f"{name}={_number(value)}" for name, value in self._chosen().items())
        self._bar.set_postfix_str(numbers, refresh=False)
        self._bar.update(cursor.count - self._start.count - self._bar.n)

    def _chosen(self) -> Mapping[str, float]:
        if self.names is None:
            return {
                name: value for name, value in self._shown.items() if value or name != "skipped"
            }
        return {name: self._shown[name] for name in self.names if name in self._shown}


class _Place:
    """Describes a cursor's position in the run as text."""

    def __init__(self, start: Cursor, batches: int | None, total: int | None) -> None:
        self._batches = batches
        read = start.count % batches if batches and start.index else 0
        self._first = start.count - read - start.epoch * (batches or 0)
        self._epochs = (
            start.epoch + math.ceil((read + total) / batches) if batches and total else None
        )
        # A run that ends within its first epoch counts towards its own end.
        self._of = min(batches or 0, read + total) if self._epochs == 1 and total else batches

    def epoch(self, cursor: Cursor) -> str:
        return f"epoch {epoch_of(cursor)}" + (f"/{self._epochs}" if self._epochs else "")

    def text(self, cursor: Cursor) -> str:
        if not self._batches:
            return f"{self.epoch(cursor)}  batch {cursor.count}"
        batch = cursor.count - self._first - (epoch_of(cursor) - 1) * self._batches
        return f"{self.epoch(cursor)}  batch {batch}/{self._of}"


def _bar_class(file: TextIO) -> Any:
    """tqdm's class for a terminal or a notebook; None if `file` is neither."""
    import tqdm

    if _in_notebook() and file is sys.stderr:
        if importlib.util.find_spec("ipywidgets"):
            from tqdm.notebook import tqdm as notebook_bar

            return notebook_bar
        return tqdm.tqdm
    return tqdm.tqdm if file.isatty() else None


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{int(rest):02}" if seconds >= 60 else f"{seconds:.1f} s"
