"""``checkpoint``: save checkpoints during a run, and delete old ones."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from fnloop.distributed.apart import Apart
from fnloop.distributed.gates import gate
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Effect, Run, named
from fnloop.store.background import Background
from fnloop.store.files import Files
from fnloop.store.keeper import Keeper
from fnloop.store.patience import patiently, write_may_pass
from fnloop.store.retention import Retention
from fnloop.store.run_folder import UNTRAINED, RunFolder
from fnloop.store.save_request import SaveRequest
from fnloop.store.slot_shapes import check_shapes, shapes_of
from fnloop.store.staging import Staging
from fnloop.store.topk import TopK
from fnloop.values.between import Between
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.donated import may_be_overwritten
from fnloop.values.merging import find, numbers
from fnloop.values.metrics import Metrics
from fnloop.values.monitored import OneNumber, best_of, check_mode, one_number
from fnloop.values.parts import check_savable, ranks_of
from fnloop.values.rhythm import Rhythm, Unit
from fnloop.values.signals import let_out, passing_over
from fnloop.values.stacked import members_of
from fnloop.values.state import State


class checkpoint(Effect):
    """Save the state during a run: the best by a metric, and the newest.

    With a monitor, a state is saved when the monitored metric is reported (after validation) and
    is among the `keep` best; also the newest one, each time `every` is due and at the end. Without
    a monitor, the newest `keep` are kept. A checkpoint is deleted only after its replacement is on
    the disk, so there must be space for one more. If saving fails during a run (a full disk), a
    warning is given, the run continues, and the next due save tries again.

    A folder holds one run. A new run in the folder of another is an error, before the first step:
    resume that one (``fl.fit(..., resume=folder)``), overwrite it, or choose another folder. Only
    what this run has saved is ever deleted. While a run is under way, a file ``.lock`` keeps other
    processes out of its folder; that of a process which was killed is taken over. If the folder is
    renamed, nothing is saved until it is back, and a warning says so.

    SIGUSR1 saves the state after the current step.

    Of many ranks (`fl.shard`) each is given it, and all save into one folder. A state that is
    divided among them is saved by all together, each its pieces; one that all have whole is saved
    by the first, which also decides what is kept, and deletes. If saving fails on one rank, it has
    failed on all. SIGUSR1 to one of them is enough.

    Args:
        folder: Where checkpoints go. Or a URL, such as ``"s3://bucket/runs/a"``.
        keep: How many to keep; None keeps all.
        monitor: Name of a metric, such as ``"val/loss"``; it should be one that is reported now
            and then, as validation does, not at every step.
        mode: "min" if smaller is better, or "max".
        every: Save the newest state every so many epochs (or a fraction of one), steps or seconds;
            default each epoch.
        unit: "epoch", "step" (batches) or "second".
        last: Also save the newest state, each time it is due (with a monitor) and when the run
            ends, whatever the reason.
        background: Save in a thread while training continues. States are not copied, but at most
            two are held until they are written. (A compiled step that donates overwrites its
            memory: then the state is copied, and only one is held.) Failures are reported at the
            next step; the end of the run waits for all saves.
        overwrite: Delete what another run has saved in the folder, when the first step is done.
        name: The key of its memo; needed if two such effects monitor one metric.
        files: The file system; default the disk, or fsspec for a URL.

    It can be asked for what it has saved:

    >>> import tempfile, torch, fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> data, state = fl.Batches(torch.ones(8, 2), batch_size=4), step.init(torch.nn.Linear(2, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saving = checkpoint(folder, keep=3, monitor="loss")
    ...     state, _ = fl.fit(step, state, data, epochs=2, callbacks=[saving])
    ...     best = fl.load(saving.best(), like=state)
    ...     saving.latest().name
    'step-00000004'
    """

    ranks: Literal["first", "all"] = "all"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int | None = 3,
        monitor: str | None = None,
        mode: str = "min",
        every: int | float | None = None,
        unit: Unit = "epoch",
        last: bool = True,
        background: bool = False,
        overwrite: bool = False,
        name: str | None = None,
        files: Files | None = None,
    ) -> None:
        check_mode(mode, monitor, "checkpoint")
        self._rhythm = Rhythm(1 if every is None else every, unit, "checkpoint(every=...)")
        if unit != "epoch" and every is None:
            raise ValueError(f"checkpoint: unit={unit!r} needs every=, the number of {unit}s.")
        if keep is not None:  # with a monitor, 0 keeps only the newest
            keep = as_count(keep, "checkpoint(keep=...)", 1 if monitor is None else 0)
        self._place = RunFolder(folder, overwrite, files)
        self.folder = self.saves_to = self._place.path
        self.files = self._place.files
        self.monitor = monitor
        self.last = self.saves_last = last
        self.background, self.mode, self._kept = background, mode, keep
        self.name = name or (f"checkpoint/{monitor}" if monitor else "checkpoint")
        kept = Retention(TopK(keep, mode), keep if monitor is None else int(last))
        self._keeper = Keeper(self._place, monitor, kept)
        self._request = SaveRequest()
        self._alone, self._agreed = True, False  # whether all ranks know of a request
        self._divided: Mesh | None = None  # the ranks of which each has only pieces of the state
        self._apart: Apart | None = None
        self._damaged: frozenset[Path] = frozenset()
        self._recalled = False
        self._worker: Background | None = None
        self._staging: Staging | None = None
        self._run: Run | None = None
        self._ended: Any = None  # where the last run ended
        self._called = False
        self._shapes: dict[str, str] = {}
        self._metrics: Metrics = {}
        self._seen = False  # whether the monitored metric was reported
        self._names: set[str] = set()  # metrics reported until then
        self._warned = False

    def best(self) -> Path | None:
        """The checkpoint of this run whose monitored metric is best, as `fl.best` finds it.

        None before the run has begun, and if there is none.
        """
        return self._place.best()

    def latest(self) -> Path | None:
        """The newest checkpoint of this run; None before it has begun, and if there is none."""
        return self._place.latest()

    @property
    def rhythms(self) -> tuple[Rhythm, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self._rhythm,)

    @property
    def asked(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether SIGUSR1 has come to this rank; setting it, the loop says that it has to one."""
        return self._request.asked

    @asked.setter
    def asked(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._agreed, self._request.asked = value, False

    def check_run(self, run: Run) -> None:
        """Refuse a state that cannot be saved, and a folder in use, or that holds another run."""
        check_savable(run.state)
        self._go_on(run)
        check = self._place.check if run.mesh.rank == 0 else lambda run: None
        jointly(run.mesh, f"the look into {self._place.path}", lambda: check(run))

    def open(self, run: Run) -> None:
        """Lock the folder, check that it can be written, and tidy it up."""
        self.folder = self.saves_to = self._place.path.absolute()
        folders = [e.saves_to.absolute() for e in run.effects if e.saves_to is not None]
        if folders.count(self.folder) > 1:
            raise ValueError(
                f"Two checkpoint effects write to {self.folder}, and would delete each other's "
                "checkpoints; give each its own folder."
            )
        self._go_on(run)
        self._alone, self._agreed = run.mesh.data == 1, False
        self._divided = ranks_of(run.state)
        later = jointly(run.mesh, f"the opening of {self.folder}", lambda: self._take(run))
        self._keeper.kept = run.mesh.exchange(self._keeper.kept)[0]
        self._run, self._called = run, False
        self._rhythm.begun(run.pace)
        if self.background:
            self._apart = Apart(self._divided) if self._divided else None
            self._worker = Background()
            self._worker.start()
        self._staging = None
        self._request.listen()
        now = Cursor.of(run.state.cursor).count
        if later and max(later) > now and not self._place.clears:
            warnings.warn(
                f"checkpoint: {self.folder} holds a checkpoint of step {max(later)}, and the run "
                f"goes on from step {now}: until it is there, fl.latest and resume= find that one. "
                "To go back for good, delete the later ones, or go on in another folder.",
                stacklevel=2,
            )

    def _take(self, run: Run) -> list[int]:
        """Take the folder, as the first rank; the counts of what is there."""
        self._place.take(run)
        self._seen, self._names, self._warned = False, set(), False
        there = self._keeper.begin(run.state)
        self._delete()
        self._note_time()
        later = [count for count, path in there.items() if path not in self._damaged]
        if self._recalled and self._place.leads:
            now = Cursor.of(run.state.cursor).count
            before = {count: there[count] for count in later if count <= now}
            self._keeper.adopt(before, self._own_name(run))
        return later

    def __call__(self, state: State, metrics: Metrics) -> None:
        requested = self._taken(state)
        if not self._saves:
            return
        if not self._called:
            self._shapes = shapes_of(state)
            self._place.clear()
        self._called, self._metrics = True, metrics
        if self._worker is not None:
            self._tell(self._worker.failures())
        cursor = Cursor.of(state.cursor)
        due = self._rhythm.is_due(cursor)
        score = self._score(state, metrics) if self.monitor else None
        if self._may_be_kept(cursor.count, score, due, requested):
            check_shapes(self._shapes, state)
            if self._worker is None:
                self._tell(_failures(self._job(state, score, due, requested, "running")))
                return
            if may_be_overwritten(state):  # by the next step
                self._staging = self._staging or Staging()
                self._worker.wait()  # until the memory of the last copy is free
                state = self._staging.copy(state)
            self._worker.do(self._job(state, score, due, requested, "running"))

    def _may_be_kept(self, count: int, score: float | None, due: bool, requested: bool) -> bool:
        """Whether to save, unless a save that is under way in the background changes that."""
        if self._apart is not None:  # what the ranks decide must not depend on their threads
            return score is not None or due or requested
        return self._keeper.kept.add(count, score, due, requested) is not None

    def needs(self) -> tuple[str, ...]:
        return () if self.monitor is None else (OneNumber(self.monitor),)

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        monitored = self.monitor is not None and self.monitor.startswith(tuple(reported))
        asked = self._request.asked if self._alone else self._agreed
        return monitored or asked or self._rhythm.is_due(cursor)

    def close(self, status: str) -> None:
        """Save the last state, and note in its manifest how the run ended."""
        try:
            self._end(status)
        except BaseException:  # a second Ctrl-C, an alarm: the last state is worth another try
            self._end(status)
            raise
        else:
            self._meet(status)
            if self._apart is not None:
                self._apart.close()
        finally:
            self.release()

    def release(self) -> None:
        self._request.stop_listening()
        self._place.release()
        if self._worker is not None:
            self._worker.release()
        self._apart = None
        self._run, self._called, self._metrics = None, False, {}
        self._worker = self._staging = None
        self._recalled = False

    def memo(self) -> dict[str, Any]:
        return self._keeper.memo()

    def recall(self, memo: Mapping[str, Any]) -> None:
        self._keeper.recall(memo)
        self._recalled = True

    def smoke(self, folder: Path) -> checkpoint:
        """The same in another folder, and at the end of the first epoch."""
        return checkpoint(
            folder,
            self._kept,
            self.monitor,
            self.mode,
            last=self.last,
            background=self.background,
            name=self.name,
        )

    def note_damaged(self, paths: Collection[Path]) -> None:
        self._damaged = frozenset(paths)

    def _go_on(self, run: Run) -> None:
        """A run that begins with the state with which this effect's last one ended is the same."""
        if run.continues is None and self._place.run and self._ended == _position(run.state):
            run.id = self._place.run

    @property
    def _saves(self) -> bool:
        """Whether this rank has a part in saving."""
        return self._place.leads or self._divided is not None

    @property
    def _mesh(self) -> Mesh:
        """The ranks that save together."""
        return self._apart or self._divided or Mesh()

    def _taken(self, state: State) -> bool:
        """Whether to save because somebody has asked, since the last call."""
        if isinstance(state, Between):
            return False
        if self._alone:
            return self._request.taken()
        agreed, self._agreed = self._agreed, False
        return agreed

    def _own_name(self, run: Run | None) -> str:
        others = named(run.effects) if run else {}
        return next((name for name, effect in others.items() if effect is self), self.name)

    def _end(self, status: str) -> None:
        run = self._run
        if run is None:
            return
        with passing_over(Exception):  # a failed step has overwritten the state
            self._ended = _position(run.state)
        failures = [] if self._worker is None else self._worker.finish()
        self._tell([error for error in failures if isinstance(error, OSError)])
        begun = self._called or run.cursor is not None
        saves = begun and not self._place.superseded
        if self._saves and self._ends_alike(run, saves):
            self._save_last(run, status)
        self._tell([error for error in failures if not isinstance(error, OSError)])

    def _ends_alike(self, run: Run, saves: bool) -> bool:
        """Whether to save the last state, which all ranks that have pieces of it must have."""
        mesh = self._mesh
        if mesh.data == 1:
            return saves
        count = None
        with passing_over(Exception):  # a failed step has overwritten the state
            count = Cursor.of(run.state.cursor).count
        try:
            alike, _ = gate(mesh, "the end of the run", f"end at {count}: {saves}")
            why = "the ranks have come to different steps"
        except RuntimeError as error:  # a rank is gone
            alike, why = False, str(error)
        if not alike:
            self._warned = False
            self._warn(
                f"the last state of the run is not saved, as each rank has only pieces of it: {why}"
            )
        return alike and saves

    def _meet(self, status: str) -> None:
        """Wait for all ranks: when the run has ended, all find what the first one has saved."""
        run = self._run
        if run is not None and (status in ("completed", "stopped") or run.reason):
            with contextlib.suppress(RuntimeError):  # a rank is gone; it has been said
                gate(run.mesh, "the end of the run", f"{self.folder} is closed")

    def _save_last(self, run: Run, status: str) -> None:
        if self.monitor and not self._seen and status in ("completed", "stopped"):
            warnings.warn(
                f"checkpoint: the metric {self.monitor!r} was never reported, so nothing was "
                f"saved as best. Reported were: {', '.join(sorted(self._names))}. The usual cause "
                "is a missing fl.validate, a run too short for it, or another prefix (val/...).",
                stacklevel=3,
            )
        if not run.whole:
            status += ", before the callbacks of its last step"
        if run.untrained:
            status += UNTRAINED
        try:
            self._write_last(run, status)
        except Exception as error:  # a full disk, or a state that a failed step has overwritten
            let_out(error)
            lost = "The last state of the run is not saved."
            if self._is_saved(run.state):
                lost = "The last state of the run is saved, but not how the run ended."
            self._warned = False
            self._warn(f"{error}. {lost}")

    def _is_saved(self, state: State) -> bool:
        with passing_over(Exception):  # a failed step has overwritten the state
            return Cursor.of(state.cursor).count == self._keeper.saved
        return False

    def _write_last(self, run: Run, status: str) -> None:
        """Save the last state; if it is saved, note in its manifest how the run ended."""
        if self._is_saved(run.state):
            known = numbers({**self._metrics, **run.last})
            self._keeper.amend(run.memos(), status=status, metrics=known)
            self._delete()
        else:
            requested = status == "interrupted"
            score = None
            with contextlib.suppress(ValueError):  # it is no number, which has ended the run
                score = self._score(run.state, self._metrics)
            job = self._job(run.state, score, self.last, requested, status)
            patiently(job, write_may_pass)  # there is no later occasion

    def _job(
        self, state: State, score: float | None, due: bool, requested: bool, status: str
    ) -> Callable[[], None]:
        """A job that saves `state` with the run's current values."""
        run = self._run
        memos = run.memos() if run and self._place.leads else {}
        monitor = {"name": self.monitor, "mode": self._keeper.kept.top.mode, "value": score}
        return functools.partial(
            self._save,
            state,
            (score, due, requested),
            self._own_name(run),
            memos,
            self._mesh,
            metrics=numbers({**self._metrics, **(run.last if run else {})}),
            config=run.config if run else None,
            data=run.data_now() if run else None,
            step=run.step if run else None,
            monitor=None if score is None else monitor,
            status=status,
            run=run.id if run else None,
        )

    def _save(self, *what: Any, **about: Any) -> None:
        """Save a state if it is to be kept, then delete what it replaces."""
        if not self._keeper.save(*what, **about):
            return
        self._note_time()
        self._delete()
        self._warned = self._warned and bool(self._keeper.kept.unneeded)

    def _note_time(self) -> None:
        """Update `closing` with the duration of a save."""
        # With a margin of a half for slow disks; in the background two more saves may be pending.
        self.closing = 1.5 * self._keeper.seconds * (3 if self.background else 1)

    def _delete(self) -> None:
        if error := self._keeper.delete():
            self._warn(f"a checkpoint that is no longer needed cannot be deleted: {error}")

    def _score(self, state: State, metrics: Metrics) -> float | None:
        if self.monitor and (value := find(metrics, self.monitor)) is not None:
            self._seen = True
            value = one_number(value, self.monitor, self.name, members_of(state))
            return None if _is_untrained(state, metrics) else best_of(value, self.mode)
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
        if not self._warned and self._place.leads:
            warnings.warn(f"checkpoint: {text}", stacklevel=4)
        self._warned = True


def _failures(job: Callable[[], None]) -> list[BaseException]:
    try:
        job()
    except OSError as error:
        let_out(error)
        return [error]
    return []


def _is_untrained(state: State, metrics: Metrics) -> bool:
    """Whether every step so far was skipped: initial weights are never the best."""
    return not state.step.any() and bool(best_of(find(metrics, "skipped") or 0, "max"))


def _position(state: State) -> Any:
    return state.cursor.tolist(), state.step.tolist(), state.key.tolist()
