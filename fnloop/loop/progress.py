"""``progress``: a bar where somebody looks, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import math
import queue
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, TextIO

from fnloop.effects.activity import Activity, unwatch, watch
from fnloop.effects.effect import Effect, Run
from fnloop.effects.points import reason_in, subset_of
from fnloop.effects.screens import screen
from fnloop.effects.spans import number
from fnloop.loop.progress_line import duration, kept_line, live_line, nested
from fnloop.names.arguments import bounded
from fnloop.values.cursor import Cursor, epoch_of
from fnloop.values.merging import merge_all, numbers_of
from fnloop.values.metrics import Metrics
from fnloop.values.state import State
from fnloop.values.threads import begin

_TICK = 0.1  # seconds from one drawing of the bar to the next
_CLOSE_EPOCHS = 0.05  # epochs shorter than that share a line


class progress(Effect):
    """Show a run's progress, speed and metrics.

    On a terminal and in a notebook it is a bar, drawn ten times a second at most, and above it a
    line for each epoch and each validation, which stay. While a step is compiled or a model is
    validated, the line says so and goes on; a validation has a bar of its own in it. What does not
    fit into the width of the terminal is left out: ``+2`` stands for two metrics. Elsewhere (a
    file, a batch system) it is a plain line every `every_seconds`. Both end with one line that says
    how the run ended. A number is the merge of the metrics since it was last shown; in the line of
    an epoch, of all of that epoch.

    `fl.fit` shows it by itself on a terminal and in a notebook.

    Args:
        every_seconds: Seconds from one plain line to the next.
        names: Metrics to show, in this order, also what `fl.trackers.throughput` and others measure
            beside them; default all metrics.
        file: Where to write; default ``sys.stderr`` as it is when the run starts, or the notebook.

    >>> effect = progress(every_seconds=60, names=["loss", "val/loss"])
    """

    name = "progress"
    opens_first = True

    def __init__(
        self,
        every_seconds: Annotated[float, bounded(0, above=True)] = 10.0,
        names: Sequence[str] | None = None,
        file: TextIO | None = None,
    ) -> None:
        self.every_seconds = every_seconds
        self.names = names
        self.file = file

    def open(self, run: Run) -> None:
        self._run, self._screen = run, screen(self.file)
        self._out = self.file or sys.stderr
        self._start = Cursor.of(run.state.cursor)
        self._place = _Place(self._start, run.batches, run.total)
        self._cursor = run.state.cursor
        self._parts: list[Metrics] = []
        self._epoch: Metrics = {}  # of this epoch, merged
        self._latest: Metrics = {}
        self._shown: dict[str, float] = {}
        self._began = self._last_time = self._epoch_began = self._kept = time.perf_counter()
        self._first: tuple[float, int] | None = None  # time and count at the first batch
        self._last_count = self._start.count
        self._interval = _TICK if self._screen else self.every_seconds
        self._due = self._began + (0.0 if self._screen else self._interval)
        self._drawn = -math.inf
        self._activity: Activity | None = None
        # A queue of C: an exception from a signal handler could leave an `Event` locked.
        self._lock, self._ended = threading.RLock(), queue.SimpleQueue[None]()
        self._ticker = threading.Thread(target=self._tick, name="fnloop-progress", daemon=True)
        self._open = True
        if self._screen:
            watch(self)
            self.shows(Activity("starting"))
            begin(self._ticker.start)

    def before(self, metrics: Metrics) -> None:
        self._shown.update(numbers_of([metrics])[0])

    def __call__(self, state: State, metrics: Metrics) -> None:
        self._parts.append(metrics)
        self._cursor = state.cursor
        if self._screen:
            self._activity = None
            _, index, count = state.cursor.tolist()
            if self._first is None:
                self._first = time.perf_counter(), count
            if not index or metrics.keys() != self._latest.keys():
                self._keep_if_due(metrics, not index)
        self._latest = metrics
        if time.perf_counter() >= self._due:
            self._show()
        elif len(self._parts) >= 256:
            self._parts = [merge_all(self._parts)]

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return False

    def close(self, status: str) -> None:
        if not getattr(self, "_open", False):
            return
        self._open = False
        self.release()
        cursor = self._read()
        self._shown.update(numbers_of([self._run.last])[0])
        reason = reason_in(self._latest, status) or self._run.reason
        seconds = time.perf_counter() - self._began
        parts = [
            f"{status} ({reason})" if reason and status not in reason else reason or status,
            self._place.text(cursor),
            f"{cursor.count - self._start.count} batches in {duration(seconds)}",
        ]
        if self._screen:
            self._screen.keep(kept_line(self._screen.columns, parts, self._chosen()))
        else:
            print(kept_line(None, parts, self._chosen()), file=self._out, flush=True)

    def release(self) -> None:
        unwatch(self)
        if hasattr(self, "_ended"):
            self._ended.put(None)
            if self._ticker.is_alive():
                self._ticker.join()

    def shows(self, activity: Activity | None) -> None:
        """Show what is going on in a step or a callback."""
        self._activity = activity
        if activity is not None and time.perf_counter() >= self._drawn + _TICK:
            self._draw()

    def says(self, line: str) -> None:
        """Keep a line."""
        if self._screen:
            with self._lock:
                self._screen.keep(line)

    def _tick(self) -> None:
        """Draw while nothing else does: the time that something takes goes on."""
        while True:
            with contextlib.suppress(queue.Empty):
                self._ended.get(timeout=5 * _TICK)
                return
            if self._activity is not None:
                self._draw()

    def _keep_if_due(self, metrics: Metrics, epoch_ends: bool) -> None:
        """Keep a line at the end of an epoch, and after a validation within one."""
        now = time.perf_counter()
        validated = any(subset_of(name)[1] != "train" for name in metrics)
        if now - self._kept < _CLOSE_EPOCHS * (1 if epoch_ends else 20):
            return
        if not self._screen or not (epoch_ends or validated):
            return
        cursor = self._read()
        numbers = self._epoch_numbers
        place = self._place.epoch(cursor) if epoch_ends else self._place.text(cursor)
        parts = [place, duration(now - self._epoch_began)]
        with self._lock:
            self._screen.keep(kept_line(self._screen.columns, parts, self._chosen(numbers)))
        self._kept = now
        if epoch_ends:
            self._epoch, self._epoch_began = {}, now

    def _show(self) -> None:
        cursor = self._read()
        if self._screen:
            self._draw()
        else:
            now = time.perf_counter()
            rate = (cursor.count - self._last_count) / max(now - self._last_time, 1e-9)
            line = kept_line(None, [self._place.text(cursor)], self._chosen())
            print(f"{line}  {number(rate)} it/s", file=self._out, flush=True)
            self._last_time, self._last_count = now, cursor.count
        self._due = time.perf_counter() + self._interval

    def _read(self) -> Cursor:
        """Read the metrics and the cursor; waits for the device."""
        if self._parts:
            # Training metrics are merged since the last display; validation shows the latest.
            merged, latest = merge_all(self._parts), _subsets(self._parts)
            epoch = merge_all([self._epoch, merged]) if self._screen else {}
            self._epoch = {**epoch, **_subsets([self._epoch]), **latest}
            numbers, self._epoch_numbers = numbers_of([{**merged, **latest}, self._epoch])
            beside = self._run.measured() if self.names is not None else {}
            for shown in (numbers, self._epoch_numbers):
                shown.update({name: v for name, v in beside.items() if name not in shown})
            self._shown.update(numbers)
            self._parts = []
        return Cursor.of(self._cursor)

    def _draw(self) -> None:
        """Draw the line that changes; reads no metrics."""
        if not self._screen:
            return
        self._drawn = time.perf_counter()
        activity, cursor = self._activity, Cursor.of(self._cursor)
        speed = left = ""
        if self._first is not None and cursor.count > self._first[1]:
            rate = (cursor.count - self._first[1]) / (time.perf_counter() - self._first[0] + 1e-9)
            speed = f"{number(rate)} it/s"
            if self._place.total is not None:
                left = duration(max(0, self._place.total - cursor.count) / rate)
        done, of = self._place.within(cursor)
        place = self._place.epoch(cursor)
        with self._lock:
            if self._open:
                self._screen.draw(
                    live_line(
                        self._screen.columns,
                        place,
                        done,
                        of,
                        self._chosen(),
                        speed,
                        left,
                        () if activity is None else nested(activity, self._screen.columns),
                    )
                )

    def _chosen(self, shown: Mapping[str, float] | None = None) -> Mapping[str, float]:
        shown = self._shown if shown is None else shown
        if self.names is not None:
            return {name: shown[name] for name in self.names if name in shown}
        # loss, val/loss, accuracy, val/accuracy; hyperparameters ("adamw.lr") last. The last are
        # the first to be left out.
        order = list(dict.fromkeys(subset_of(name)[0] for name in shown))
        names = sorted(shown, key=lambda name: ("." in name, order.index(subset_of(name)[0])))
        return {name: shown[name] for name in names if shown[name] or name != "skipped"}


def _subsets(parts: Iterable[Metrics]) -> dict[str, Any]:
    """The latest of each metric with a prefix, such as ``val/loss``."""
    return {name: part[name] for part in parts for name in part if "/" in name}


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
        self._start = start
        self.total = None if total is None else start.count + total
        """The count of the last batch; None if unknown."""

    def epoch(self, cursor: Cursor) -> str:
        return f"epoch {self._epoch(cursor)}" + (f"/{self._epochs}" if self._epochs else "")

    def _epoch(self, cursor: Cursor) -> int:
        """That of the last batch drawn; before the first one of the run, that of the first."""
        drawn, all_done = cursor.count - self._start.count, cursor.count == self.total
        return epoch_of(cursor) if drawn or cursor.index or all_done else cursor.epoch + 1

    def within(self, cursor: Cursor) -> tuple[int, int | None]:
        """Batches drawn and batches in all: of the epoch, or of the run if those are unknown."""
        if self._batches:
            batch = cursor.count - self._first - (self._epoch(cursor) - 1) * self._batches
            return max(0, batch), self._of
        drawn = cursor.count - self._start.count
        return drawn, None if self.total is None else self.total - self._start.count

    def text(self, cursor: Cursor) -> str:
        if not self._batches:
            return f"{self.epoch(cursor)}  batch {cursor.count}"
        batch, of = self.within(cursor)
        return f"{self.epoch(cursor)}  batch {batch}/{of}"
