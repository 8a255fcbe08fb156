"""``checkpoint``: save checkpoints during a run, and delete old ones."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fnloop.effects.effect import Effect, Run, named
from fnloop.store import tensor_file
from fnloop.store.background import Background
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.commit import discard, prepare, sweep
from fnloop.store.files import Files, as_path, files_for
from fnloop.store.folders import listing, target_of
from fnloop.store.manifest import amend, read_manifest
from fnloop.store.patience import patiently, write_may_pass
from fnloop.store.retention import Retention
from fnloop.store.save import leaves_of, save
from fnloop.store.save_request import SaveRequest
from fnloop.store.staging import Staging
from fnloop.store.topk import TopK
from fnloop.trees.equal import table
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.cursor import Cursor, is_due
from fnloop.values.donated import may_be_overwritten
from fnloop.values.merging import find, numbers
from fnloop.values.metrics import Metrics
from fnloop.values.state import State

_GUESS = 100e6  # bytes a second, until a save has been timed


class checkpoint(Effect):
    """Save the state during a run: the best by a metric, and the newest.

    With a monitor, a state is saved when the monitored metric is reported (after validation) and
    is among the `keep` best; also the newest one, each time `every` is due and at the end. Without
    a monitor, the newest `keep` are kept. A checkpoint is deleted only after its replacement is on
    the disk, so there must be space for one more. If saving fails during a run (a full disk), a
    warning is given, the run continues, and the next due save tries again.

    SIGUSR1 saves the state after the current step.

    Args:
        folder: Where checkpoints go; no other run should write there at the same time. Or a URL,
            such as ``"s3://bucket/runs/a"``.
        keep: How many to keep; None keeps all.
        monitor: Name of a metric, such as ``"val/loss"``; it should be one that is reported now
            and then, as validation does, not at every step.
        mode: "min" if smaller is better, or "max".
        every: Save the newest state every so many epochs or steps; default each epoch.
        unit: "epoch" or "step" (batches).
        last: Also save the newest state, each time it is due (with a monitor) and when the run
            ends, whatever the reason.
        background: Save in a thread while training continues. States are not copied, but at most
            two are held until they are written. (A compiled step that donates overwrites its
            memory: then the state is copied, and only one is held.) Failures are reported at the
            next step; the end of the run waits for all saves.
        name: The key of its memo; needed if two such effects monitor one metric.
        files: The file system; default the disk, or fsspec for a URL.

    >>> checkpoint("runs/a", keep=3, monitor="val/loss").name
    'checkpoint/val/loss'
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int | None = 3,
        monitor: str | None = None,
        mode: str = "min",
        every: int | None = None,
        unit: str = "epoch",
        last: bool = True,
        background: bool = False,
        name: str | None = None,
        files: Files | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f'checkpoint: mode={mode!r}; expected "min" or "max".')
        if unit not in ("epoch", "step"):
            raise ValueError(f'checkpoint: unit={unit!r}; expected "epoch" or "step".')
        if unit == "step" and every is None:
            raise ValueError('checkpoint: unit="step" needs every=, the number of steps.')
        if every is not None and every < 1:
            raise ValueError(f"checkpoint: every={every}; expected 1 or more.")
        if keep is not None and (keep < 0 or (keep == 0 and monitor is None)):
            raise ValueError(f"checkpoint: keep={keep}; expected 1 or more, or None for all.")
        self.folder = self.saves_to = as_path(folder)
        self.files = files or files_for(self.folder)
        self.monitor = monitor
        self.every = every or 1
        self.unit = unit
        self.last = self.saves_last = last
        self.background = background
        self.name = name or (f"checkpoint/{monitor}" if monitor else "checkpoint")
        self._kept = Retention(TopK(keep, mode), keep if monitor is None else int(last))
        self._request = SaveRequest()
        self._damaged: frozenset[Path] = frozenset()
        self._recalled = False
        self._worker: Background | None = None
        self._staging: Staging | None = None
        self._run: Run | None = None
        self._called = False
        self._shapes: dict[str, str] = {}
        self._metrics: Metrics = {}
        self._seen = False  # whether the monitored metric was reported
        self._names: set[str] = set()  # metrics reported until then
        self._saved: int | None = None
        self._warned = False
        self._longest = 0.0  # seconds; a guess, until a save has been timed
        self._timed = False

    def open(self, run: Run) -> None:
        """Check that the folder can be written, and tidy it up."""
        self.folder = self.saves_to = self.folder.absolute()
        folders = [e.saves_to.absolute() for e in run.effects if e.saves_to is not None]
        if folders.count(self.folder) > 1:
            raise ValueError(
                f"Two checkpoint effects write to {self.folder}, and would delete each other's "
                "checkpoints; give each its own folder."
            )
        prepare(self.folder, self.files)
        self._longest = self._longest or tensor_file.size_of(leaves_of(run.state)) / _GUESS
        self._note_time(0.0)
        sweep(self.folder, self.files)
        self._run, self._called, self._saved = run, False, None
        self._seen, self._names, self._warned = False, set(), False
        self._delete()
        on_disk = listing(self.folder, self.files)
        now = Cursor.of(run.state.cursor).count
        self._kept = self._kept.only({count for count in on_disk if count <= now})
        later = [count for count, path in on_disk.items() if path not in self._damaged]
        if self._recalled:
            self._adopt(run, {count: on_disk[count] for count in later if count <= now})
        self._worker = Background() if self.background else None
        self._staging = None
        self._request.listen()
        if later and max(later) > now:
            warnings.warn(
                f"checkpoint: {self.folder} holds a checkpoint of step {max(later)}, and this "
                f"run begins at step {now}: until then, the latest checkpoint is another run's. "
                "Use another folder, or resume that run.",
                stacklevel=2,
            )

    def __call__(self, state: State, metrics: Metrics) -> None:
        if not self._called:
            self._shapes = _shapes(state)
        self._called, self._metrics = True, metrics
        if self._worker is not None:
            self._tell(self._worker.failures())
        cursor = Cursor.of(state.cursor)
        due = is_due(self.every, self.unit, cursor)
        score = self._score(metrics) if self.monitor else None
        requested = self._request.taken()
        if self._kept.add(cursor.count, score, due, requested) is not None:
            _check_shapes(self._shapes, state)
            if self._worker is None:
                self._tell(_failures(self._job(state, score, due, requested, "running")))
                return
            if may_be_overwritten(state):  # by the next step
                self._staging = self._staging or Staging()
                self._worker.wait()  # until the memory of the last copy is free
                state = self._staging.copy(state)
            self._worker.do(self._job(state, score, due, requested, "running"))

    def close(self, status: str) -> None:
        """Save the last state, and note in its manifest how the run ended."""
        self._request.stop_listening()
        run = self._run
        if run is None:
            return
        failures = [] if self._worker is None else self._worker.finish()
        self._tell([error for error in failures if isinstance(error, OSError)])
        if self._called:
            self._close(run, status)
        self._run, self._called, self._metrics = None, False, {}
        self._worker = self._staging = None
        self._recalled = False
        self._tell([error for error in failures if not isinstance(error, OSError)])

    def memo(self) -> dict[str, Any]:
        return {"monitor": self.monitor, **self._kept.memo()}

    def recall(self, memo: Mapping[str, Any]) -> None:
        same = (memo["monitor"], memo["mode"]) == (self.monitor, self._kept.top.mode)
        if not same and memo["best"]:
            warnings.warn(
                f"checkpoint: the run monitored {memo['monitor']!r} ({memo['mode']}), and now "
                f"monitors {self.monitor!r} ({self._kept.top.mode}). The search for the best "
                "starts again; the best so far stay on the disk.",
                stacklevel=2,
            )
        self._kept = self._kept.recall(memo, same)
        self._recalled = True

    def note_damaged(self, paths: Collection[Path]) -> None:
        self._damaged = frozenset(paths)

    def _adopt(self, run: Run, on_disk: Mapping[int, Path]) -> None:
        """Also manage what this effect saved after the memo that it was resumed from.

        With two such effects, the last checkpoint is one's, and the other's memo in it is older.
        """
        own = self._own_name(run)
        for count in sorted(on_disk.keys() - self._kept.counts - {*self._kept.unneeded}):
            with contextlib.suppress(CheckpointError, LookupError, TypeError):
                memo = read_manifest(on_disk[count], files=self.files)["memos"][own]
                if count in memo["recent"] and count not in {entry[0] for entry in memo["best"]}:
                    self._kept = self._kept.add(count, None, due=True) or self._kept

    def _own_name(self, run: Run | None) -> str:
        others = named(run.effects) if run else {}
        return next((name for name, effect in others.items() if effect is self), self.name)

    def _close(self, run: Run, status: str) -> None:
        if self.monitor and not self._seen and status in ("completed", "stopped"):
            warnings.warn(
                f"checkpoint: the metric {self.monitor!r} was never reported, so nothing was "
                f"saved as best. Reported were: {', '.join(sorted(self._names))}. The usual cause "
                "is a missing fl.validate, a run too short for it, or another prefix (val/...).",
                stacklevel=3,
            )
        if not run.whole:
            status += ", before the callbacks of its last step"
        lost = "The last state of the run is not saved."
        try:
            count = Cursor.of(run.state.cursor).count
            if count == self._saved:
                lost = "The last state of the run is saved, but not how the run ended."
                place = target_of(self.folder, count)
                memos = run.memos()
                patiently(
                    lambda: amend(place, self.files, status=status, memos=memos), write_may_pass
                )
                self._delete()
            else:
                requested = status == "interrupted"
                score = self._score(self._metrics)
                job = self._job(run.state, score, self.last, requested, status)
                patiently(job, write_may_pass)  # there is no later occasion
        except Exception as error:  # a full disk, or a state that a failed step has overwritten
            self._warned = False
            self._warn(f"{error}. {lost}")

    def _job(
        self, state: State, score: float | None, due: bool, requested: bool, status: str
    ) -> Callable[[], None]:
        """A job that saves `state` with the run's current values."""
        run = self._run
        memos = {} if run is None else run.memos()
        own = self._own_name(run)
        monitor = {"name": self.monitor, "mode": self._kept.top.mode, "value": score}
        return functools.partial(
            self._consider,
            state,
            (score, due, requested),
            own,
            memos=memos,
            metrics=numbers(self._metrics),
            config=run.config if run else None,
            data=run.data_now() if run else None,
            step=run.step if run else None,
            monitor=None if score is None else monitor,
            status=status,
        )

    def _consider(
        self,
        state: State,
        occasion: tuple[float | None, bool, bool],
        own: str,
        memos: dict[str, Any],
        **about: Any,
    ) -> None:
        """Save `state` if it is to be kept, then delete what it replaces."""
        count = Cursor.of(state.cursor).count
        before, kept = self._kept, self._kept.add(count, *occasion)
        if kept is None:
            return
        self._kept = kept
        began = time.monotonic()
        try:
            save(state, self.folder, files=self.files, memos={**memos, own: self.memo()}, **about)
        except BaseException:
            self._kept = before
            raise
        self._note_time(time.monotonic() - began)
        self._saved = count
        self._delete()
        self._warned = self._warned and bool(self._kept.unneeded)

    def _note_time(self, seconds: float) -> None:
        """Update `closing` with the duration of a save."""
        if seconds:
            self._longest = max(self._longest if self._timed else 0.0, seconds)
            self._timed = True
        # With a margin of a half for slow disks; in the background two more saves may be pending.
        self.closing = 1.5 * self._longest * (3 if self.background else 1)

    def _delete(self) -> None:
        """Delete what is not needed; retry later what cannot be deleted now."""
        for count in self._kept.unneeded:
            try:
                discard(target_of(self.folder, count), self.files)
            except OSError as error:
                self._warn(f"a checkpoint that is no longer needed cannot be deleted: {error}")
                return
            self._kept = self._kept.deleted(count)

    def _score(self, metrics: Metrics) -> float | None:
        value = find(metrics, self.monitor or "")
        if value is not None:
            self._seen = True
            return float(value)
        if not self._seen:
            self._names.update(metrics)
        return None

    def _tell(self, failures: list[BaseException]) -> None:
        """Warn of disk failures; raise any other exception."""
        for error in failures:
            if not isinstance(error, OSError):
                raise error
            self._warn(f"{error}. The run continues, and the next due save tries again.")

    def _warn(self, text: str) -> None:
        if not self._warned:
            warnings.warn(f"checkpoint: {text}", stacklevel=4)
        self._warned = True


def _failures(job: Callable[[], None]) -> list[BaseException]:
    try:
        job()
    except OSError as error:
        return [error]
    return []


def _shapes(state: State) -> dict[str, str]:
    return {path: short(leaf) for path, leaf in tree_items(state.slots)}


def _check_shapes(first: Mapping[str, str], state: State) -> None:
    """Raise if memory has grown: a run could not be resumed from it. (Closing saves it anyway.)"""
    changed = [
        (f"slots/{path}", first[path], shape)
        for path, shape in _shapes(state).items()
        if first.get(path, shape) != shape
    ]
    if changed:
        raise ValueError(
            "The memory has changed its shape since the first step, so that a run could "
            "not be resumed from it:\n"
            + table(("leaf", "first", "now"), changed)
            + "\nThe usual cause is a callback that collects values. Give its memory a fixed "
            "shape in init_state: the whole window, filled with nan."
        )
