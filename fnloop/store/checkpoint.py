"""Save checkpoints while a run goes on, and delete those that nobody needs any more."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.effects import Effect, Run
from fnloop.store.folders import discard, listing, prepare, sweep, target_of
from fnloop.store.manifest import amend
from fnloop.store.save import leaves_of, save
from fnloop.store.topk import TopK
from fnloop.values import Cursor, State, find, is_due
from fnloop.values.metrics import Metrics


class checkpoint(Effect):
    """Save the state during a run: the best by a metric, and the newest.

    With a monitor, a state is saved when the monitored metric is reported (after validation) and
    is among the `keep` best; and the newest one at each occasion and at the end. Without one, the
    newest `keep` are kept. A checkpoint is deleted only after the one that takes its place is on
    the disk, which needs room for one more. If saving fails in the middle of a run (a full disk),
    that is warned of, the run goes on, and it is tried again at the next occasion.

    Args:
        folder: Where checkpoints go; no other run should write there at the same time.
        keep: How many to keep; None keeps all.
        monitor: Name of a metric, such as ``"val/loss"``; it should be one that is reported now
            and then, as validation does, not at every step.
        mode: "min" if smaller is better, or "max".
        every: An occasion is every so many epochs or steps; by default each epoch's end.
        unit: "epoch" or "step" (batches).
        last: Also save the newest state, at each occasion (with a monitor) and when the run ends,
            however it ends.
        name: Under which its memo is kept; needed if two watch one metric.

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
        name: str | None = None,
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
        self.folder = Path(folder)
        self.monitor = monitor
        self.every = every or 1
        self.unit = unit
        self.last = last
        self.name = name or (f"checkpoint/{monitor}" if monitor else "checkpoint")
        self._top = TopK(keep, mode)
        # How many of the newest are kept, whatever their score.
        self._newest = keep if monitor is None else int(last)
        self._recent: tuple[int, ...] = ()
        self._unneeded: tuple[int, ...] = ()
        self._run: Run | None = None
        self._state: State | None = None
        self._metrics: Metrics = {}
        self._seen = False  # the monitored metric was reported
        self._names: set[str] = set()  # what was reported before that
        self._saved: int | None = None
        self._warned = False

    def open(self, run: Run) -> None:
        """Find out before training that the folder cannot be written."""
        self.folder = self.folder.absolute()
        others = [e for e in run.effects if isinstance(e, checkpoint) and e is not self]
        if any(other.folder.absolute() == self.folder for other in others):
            raise ValueError(
                f"Two checkpoint effects write to {self.folder}, and would delete each other's "
                "checkpoints; give each a folder of its own."
            )
        prepare(self.folder)
        leaves_of(run.state)
        sweep(self.folder)
        self._run, self._called, self._saved = run, False, None
        self._seen, self._names, self._warned = False, set(), False
        self._delete()
        on_disk = listing(self.folder)
        now = Cursor.of(run.state.cursor).count
        own = {count for count in on_disk if count <= now}
        entries = tuple(entry for entry in self._top.entries if entry[0] in own)
        self._top = TopK(self._top.keep, self._top.mode, entries)
        self._recent = tuple(count for count in self._recent if count in own)
        if on_disk and max(on_disk) > now:
            warnings.warn(
                f"checkpoint: {self.folder} holds a checkpoint of step {max(on_disk)}, and this "
                f"run begins at step {now}: until it gets there, the latest one is another run's. "
                "Use another folder, or resume that run.",
                stacklevel=2,
            )

    def __call__(self, state: State, metrics: Metrics) -> None:
        self._called, self._metrics = True, metrics
        due = is_due(self.every, self.unit, Cursor.of(state.cursor))
        score = self._score(metrics) if self.monitor else None
        if score is not None or (due and self._newest != 0):
            try:
                self._consider(state, score, due, "running")
            except OSError as error:
                self._warn(f"{error}. The run goes on, and it is tried again at the next occasion.")

    def close(self, status: str) -> None:
        """Save the last state too, and note in its manifest how the run ended."""
        run = self._run
        if run is None or not self._called:
            return
        state = run.state
        if self.monitor and not self._seen and status in ("completed", "stopped"):
            warnings.warn(
                f"checkpoint: the metric {self.monitor!r} was never reported, so nothing was "
                f"saved as best. Reported were: {', '.join(sorted(self._names))}. The usual cause "
                "is a missing fl.validate, a run too short for it, or another prefix (val/...).",
                stacklevel=2,
            )
        try:
            count = Cursor.of(state.cursor).count
            if count == self._saved:
                amend(target_of(self.folder, count), status=status, memos=self._memos())
            else:
                self._consider(state, self._score(self._metrics), self.last, status)
        except Exception as error:  # a full disk, or a state that a failed step has consumed
            self._warned = False
            self._warn(f"{error}. The last state of the run is not saved.")
        self._run, self._called, self._metrics = None, False, {}

    def memo(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "mode": self._top.mode,
            "best": [list(entry) for entry in self._top.entries],
            "recent": list(self._recent),
            "unneeded": list(self._unneeded),
        }

    def recall(self, memo: Mapping[str, Any]) -> None:
        top = TopK(self._top.keep, self._top.mode)
        recent, best = memo["recent"], {count for count, _ in memo["best"]}
        known = {*recent, *memo["unneeded"]}
        if (memo["monitor"], memo["mode"]) == (self.monitor, top.mode):
            known |= best
            for count, score in memo["best"]:
                top = top.add(count, score)
        elif memo["best"]:
            warnings.warn(
                f"checkpoint: the run was monitored by {memo['monitor']!r} ({memo['mode']}), and "
                f"now is by {self.monitor!r} ({top.mode}). The search for the best begins anew; "
                "the best so far stay on the disk.",
                stacklevel=2,
            )
            known, recent = known - best, [count for count in recent if count not in best]
        self._top = top
        self._recent = self._trim(tuple(recent))
        self._unneeded = tuple(sorted(known - {*top.counts, *self._recent}))

    def _consider(self, state: State, score: float | None, due: bool, status: str) -> None:
        """Save `state` if it is to be kept, then delete what it displaces."""
        count = Cursor.of(state.cursor).count
        before = self._top, self._recent, self._unneeded
        if score is not None:
            self._top = self._top.add(count, score)
        if self._top is before[0] and not (due and self._newest != 0):
            return
        kept_before = {*before[0].counts, *before[1]}
        self._recent = self._trim((*self._recent, count))
        kept = {*self._top.counts, *self._recent}
        self._unneeded = tuple(sorted({*self._unneeded, *kept_before} - kept))
        try:
            self._save(state, score, status)
        except BaseException:
            self._top, self._recent, self._unneeded = before
            raise
        self._saved = count
        self._delete()
        self._warned = self._warned and bool(self._unneeded)

    def _save(self, state: State, score: float | None, status: str) -> None:
        run = self._run
        monitor = {"name": self.monitor, "mode": self._top.mode, "value": score}
        save(
            state,
            self.folder,
            metrics=self._metrics,
            config=run.config if run else None,
            memos=self._memos(),
            step=run.step if run else None,
            monitor=None if score is None else monitor,
            status=status,
        )

    def _memos(self) -> dict[str, Any]:
        return self._run.memos() if self._run else {}

    def _delete(self) -> None:
        """Delete what is not needed; what cannot be deleted now is tried again later."""
        for count in self._unneeded:
            try:
                discard(target_of(self.folder, count))
            except OSError as error:
                self._warn(f"a checkpoint that is no longer needed cannot be deleted: {error}")
                return
            self._unneeded = tuple(other for other in self._unneeded if other != count)

    def _trim(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        if self._newest is None:
            return counts
        return counts[-self._newest :] if self._newest else ()

    def _score(self, metrics: Metrics) -> float | None:
        value = find(metrics, self.monitor or "")
        if value is not None:
            self._seen = True
            return float(value)
        if not self._seen:
            self._names.update(metrics)
        return None

    def _warn(self, text: str) -> None:
        if not self._warned:
            warnings.warn(f"checkpoint: {text}", stacklevel=4)
        self._warned = True
