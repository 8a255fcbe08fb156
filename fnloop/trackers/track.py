"""``track``: the effect that sends a run's metrics to trackers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Any

from fnloop.effects.claims import Claim, claim
from fnloop.effects.effect import Effect, Run
from fnloop.effects.points import Point, Points
from fnloop.stages.callback import Callback
from fnloop.trackers.base import Tracker
from fnloop.trackers.nowhere import Nowhere
from fnloop.trackers.run_files import is_name
from fnloop.trackers.shown import Shown
from fnloop.trackers.worker import Reading, Showing, Worker
from fnloop.trees.json_codec import plain
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor, epoch_of
from fnloop.values.metrics import Metrics
from fnloop.values.rhythm import Rhythm
from fnloop.values.signals import let_out
from fnloop.values.state import State


class track(Effect):
    """Send a run's hyperparameters and metrics to one or more trackers, and what is shown there.

    A point is the merge of all metrics since the point before. One is written every `every`
    batches, at the end of each epoch, at the end of the run, and at a step with validation metrics
    (a prefix, as in ``val/loss``). A metric of several numbers has a name for each
    (`fl.metrics.numbers`). Other threads do the writing, one for each tracker. A tracker that
    cannot be opened is an error. If one fails later (a full disk, a server that is away), there is
    a warning, training continues, its points are kept (10,000 at most) and tried again until the
    run ends; what is lost then is said. The end of the run waits for slow trackers, and says so. A
    resumed run continues the same tracker run.

    Args:
        tracker: An `fl.trackers.Aim`, `fl.trackers.TensorBoard`, `fl.trackers.MLflow`,
            `fl.trackers.WandB`, `fl.trackers.Trackio`, `fl.trackers.JSONL`, `fl.trackers.CSV`, or
            your own `fl.trackers.Tracker`.
        more: Further trackers; and what they are to show (pictures, texts, sounds, histograms,
            files): `fl.trackers.show`, `fl.trackers.histograms` and others, in `fl.every`. A
            tracker that does not take a kind of it leaves it out, and says so once.
        every: Batches from one point to the next; default 50, or the whole epoch if an epoch has
            fewer than 100.
        name: The key of its memo; change it if a run has two such effects.

    >>> import fnloop as fl
    >>> effect = fl.track(fl.trackers.Aim("runs"), fl.trackers.CSV("runs/a.csv"), every=100)
    >>> effect = fl.track(
    ...     fl.trackers.Aim("runs"), fl.every(500, fl.trackers.histograms("*.weight"))
    ... )
    """

    gathers = True

    def __init__(
        self,
        tracker: Tracker,
        *more: Tracker | Effect,
        every: int | None = None,
        name: str = "track",
    ) -> None:
        self.trackers = (tracker, *[each for each in more if not isinstance(each, Effect)])
        self.views = tuple([each for each in more if isinstance(each, Effect)])
        for each in self.trackers:
            if isinstance(each, Callback):
                raise TypeError(
                    f"fl.track was given {each.describe()}, which is a callback. What trackers "
                    "show is made by fl.trackers.show: fl.every(500, fl.trackers.show(f))."
                )
            if not isinstance(each, Tracker):
                raise TypeError(
                    "fl.track takes trackers such as fl.trackers.Aim(), the first of all, and was "
                    f"given {each!r}. The usual cause is a class without parentheses or a path; "
                    "write fl.trackers.JSONL(path)."
                )
        self.every = None if every is None else as_count(every, "track(every=...)", 1)
        self.name = name
        self._points = Points(self.every)
        self._recalled: Points | None = None
        self._runs: list[str | None] = []
        self._places: list[Path | None] = []
        self._run: Run | None = None
        self._opened: list[Tracker] = []
        self._claims: list[Claim] = []
        self._workers: list[Worker] = []

    def check_run(self, run: Run) -> None:
        with self._shown_by(run):
            for view in self.views:
                view.check_run(run)

    def needs(self) -> tuple[str, ...]:
        return tuple([name for view in self.views for name in view.needs()])

    def open(self, run: Run) -> None:
        config = plain(run.config)
        none: list[None] = [None] * len(self.trackers)
        runs, places = [*self._runs, *none], [*self._places, *none]
        self._runs, self._places = [], []
        self._points = self._recalled or Points(self.every)
        self._recalled = None
        self._points.open(run.batches, run.measured, run.reported)
        self._run, self._opened = run, []
        for tracker, id, place in zip(self.trackers, runs, places, strict=False):
            tracker.place_before = place
            self._opened.append(tracker)
            try:
                tracker.open(config, id)
                if id is not None:
                    tracker.rewind(Cursor.of(run.state.cursor).count)
            except Exception as error:
                self._close_trackers("failed")
                let_out(error)
                raise RuntimeError(
                    f"The tracker {type(tracker).__name__} cannot be opened, so the run was not "
                    f"started: {type(error).__name__}: {error}"
                ) from error
        places = [tracker.place for tracker in self.trackers]
        self._claims = [claim(place) for place in places if place is not None]
        self._workers = [Worker(tracker) for tracker in self.trackers]
        for worker in self._workers:
            worker.start()
        with self._shown_by(run):
            for view in self.views:
                view.open(run)

    def before(self, metrics: Metrics) -> None:
        self._put(Point(0, 0, dict(metrics)))

    def smoke(self, folder: Path) -> track:
        views = [view.smoke(folder) for view in self.views]
        kept = [view for view in views if view is not None]
        return track(Nowhere(), *kept, every=self.every, name=self.name)

    def __call__(self, state: State, metrics: Metrics) -> None:
        point = self._points.add(state, metrics)
        if point is not None:
            self._put(point)
        for view in self.views:
            view(state, metrics)

    @property
    def rhythms(self) -> tuple[Rhythm, ...]:  # type: ignore[override]  # pyright: ignore
        return tuple([rhythm for view in self.views for rhythm in view.rhythms])

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return any([view.needs_state(cursor, reported) for view in self.views])

    def close(self, status: str) -> None:
        try:
            self._write_rest()
            self._close_views(status)
            self._close_workers()
            self._close_trackers(status)
        finally:  # what an exception from a signal handler has left open
            try:
                self._close_workers()
            finally:
                self._close_trackers(status)

    def release(self) -> None:
        for view in self.views:
            view.release()
        while self._workers:
            self._workers.pop().give_up()

    def _close_workers(self) -> None:
        while self._workers:
            worker = self._workers[0]
            if not worker.close():  # its tracker hangs in a call, so it cannot be closed
                self._opened = [each for each in self._opened if each is not worker.tracker]
            self._workers.pop(0)

    def _write_rest(self) -> None:
        # A resumed run may continue this point; if one has already, it is left to that run.
        if not self._workers or self._run is None or self._points.peek() is None:
            return
        point = self._points.peek(self._run.last)
        if point is not None and self._holds():
            self._put(point)

    def _close_views(self, status: str) -> None:
        if self._workers:
            for view in self.views:
                view.close(status)

    @contextlib.contextmanager
    def _shown_by(self, run: Run) -> Generator[None]:
        """While its own views look at the run, and not a copy: the loop goes on writing to it."""
        run.show = self._show
        try:
            yield
        finally:
            run.show = None

    def _show(self, state: State, values: Mapping[str, Shown]) -> None:
        cursor = Cursor.of(state.cursor)
        if values and self._holds():
            showing = Showing(cursor.count, epoch_of(cursor), dict(values))
            for worker in self._workers:
                worker.put(showing)

    def _holds(self) -> bool:
        return all(claim.holds() for claim in self._claims)

    def _put(self, point: Point) -> None:
        reading = Reading(point)
        for worker in self._workers:
            worker.put(reading)

    def memo(self) -> Any:
        runs = [
            {
                "tracker": type(each).__name__,
                "run": each.id,
                "place": None if each.place is None else str(each.place),
            }
            for each in self.trackers
        ]
        return {"runs": runs, "window": self._points.memo(), "always": self._points.always}

    def recall(self, memo: Any) -> None:
        self._recalled = Points(self.every)
        self._recalled.recall(memo["window"], memo.get("always"))
        # A run's id may become a file name, and the checkpoint may be untrusted.
        left = [entry for entry in memo["runs"] if is_name(entry["run"])]
        for tracker in self.trackers:
            kind = type(tracker).__name__
            found = next((entry for entry in left if entry["tracker"] == kind), None)
            if found is not None:
                left.remove(found)
            self._runs.append(found["run"] if found else None)
            place = found.get("place") if found else None
            self._places.append(Path(place) if isinstance(place, str) else None)

    def _close_trackers(self, status: str) -> None:
        while self._opened:
            tracker = self._opened[0]
            try:
                tracker.close(status)
            except Exception as error:
                warnings.warn(
                    f"The tracker {type(tracker).__name__} could not be closed: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=3,
                )
            self._opened.pop(0)
