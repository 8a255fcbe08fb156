"""A run's folder: it holds one run, and one process decides what is in it."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fnloop.effects.claims import Claim, claim
from fnloop.effects.effect import Run
from fnloop.store.checkpoint_errors import CheckpointError, UnreadableError
from fnloop.store.commit import discard, prepare, remove_tree
from fnloop.store.files import Files, as_path, files_for, reason_of
from fnloop.store.folders import best, is_there, latest, listing, target_of
from fnloop.store.manifest import MANIFEST, read_manifest, standing
from fnloop.store.pages import PAGES
from fnloop.store.patience import patiently, write_may_pass
from fnloop.store.run_lock import Lock, check_free
from fnloop.values.signals import let_out

UNTRAINED = ", no step committed"
"""The end of a run's status in the manifest, if it has trained nothing."""

_log = logging.getLogger("fnloop")
_ADVICE = (
    "The usual cause is a folder that you may not write to, or a store that does not answer: try "
    "again when it does, or choose another folder"
)


class RunFolder:
    """The folder that a run saves to, from the run's beginning to its end.

    Args:
        folder: The folder, or a URL.
        overwrite: Whether what another run has saved there is deleted, by `clear`.
        files: The file system; default the disk, or fsspec for a URL.

    Attributes:
        path: The folder; absolute from `take` on.
        files: Its file system.
        run: The identity of the run, also after its end; None before its beginning.
        clears: Whether `clear` still has to delete something.
        leads: Whether this process decides what is in the folder, and holds its lock; of many ranks
            that is the first.
    """

    def __init__(
        self, folder: str | os.PathLike[str], overwrite: bool, files: Files | None
    ) -> None:
        self.path = as_path(folder)
        self.files = files or files_for(self.path)
        self.clears, self.leads = False, True
        self._given, self._overwrite = str(folder), overwrite
        self._lock: Lock | None = None
        self._claim: Claim | None = None
        self.run: str | None = None
        self._begun = False  # whether the run goes on from a checkpoint in this folder

    def check(self, run: Run) -> None:
        """Refuse a folder that is in use, or holds another run; it is not locked yet.

        Raises:
            FileExistsError: It is.
        """
        try:
            patiently(lambda: check_free(self.path.absolute(), self.files, self._goes_on(run)))
            self._check_owner(run)
        except FileExistsError:
            raise
        except OSError as error:
            let_out(error)
            why = f"No checkpoint can be written to {self.path}: {reason_of(error)}. {_ADVICE}"
            raise OSError(error.errno or errno.EIO, why) from error

    def take(self, run: Run) -> None:
        """Make the folder where it is missing, lock it, and check it again: the first rank does.

        Raises:
            FileExistsError: It is in use, or holds another run.
            OSError: It cannot be written.
        """
        self.path = self.path.absolute()
        self.leads = run.mesh.rank == 0
        if not self.leads:
            self.run, self._begun, self._claim = run.id, self._goes_on(run), claim(self.path)
            return
        patiently(lambda: prepare(self.path, self.files), write_may_pass)
        try:
            self._lock = Lock(self.path, self.files, self._goes_on(run))
            self._lock.take()
            self._claim = claim(self.path)
        except FileExistsError:
            raise
        except OSError as error:
            let_out(error)
            why = f"{self.path} cannot be locked ({reason_of(error)}). {_ADVICE}"
            raise OSError(error.errno or errno.EIO, why) from error
        self._check_owner(run)
        self.run, self._begun = run.id, self._goes_on(run)
        self.clears = self._overwrite or run.overwrite
        if not self.clears and not self._begun and self._is_untrained():
            self.clears = True
            _log.warning("%s holds a run in which no step was committed: it is replaced", self.path)

    def check_held(self) -> None:
        """Raise `OSError` if the folder was renamed, or another process has taken it."""
        if self._lock is not None:
            self._lock.check()

    @property
    def superseded(self) -> bool:
        """Whether a later run of this process has gone on in the folder."""
        return self._claim is not None and not self._claim.holds()

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None  # only now: an exception may come in between, and this is called again

    def own(self, counts: Iterable[int]) -> set[int]:
        """Those of `counts` whose checkpoints this run has saved."""
        paths = {count: target_of(self.path, count) for count in counts}
        return {count for count, path in paths.items() if self._is_own(path)}

    def clear(self) -> None:
        """Delete what another run has saved, if that was asked for."""
        if not self.clears:
            return
        patiently(self._clear, write_may_pass)
        self.clears = False

    def _clear(self) -> None:
        there = [*listing(self.path, self.files).values()]
        others = [path for path in there if not self._is_own(path)]
        for path in others:
            discard(path, self.files)
        if len(others) == len(there) and self.files.exists(self.path / PAGES):
            remove_tree(self.path / PAGES, self.files)

    def best(self) -> Path | None:
        """The best checkpoint of the run; None if there is none."""
        return best(self.path, run=self.run, files=self.files) if self.run else None

    def latest(self) -> Path | None:
        """The newest checkpoint of the run; None if there is none."""
        return latest(self.path, run=self.run, files=self.files) if self.run else None

    def _is_own(self, path: Path) -> bool:
        # A damaged one has no identity either.
        return _owns(_manifest(path, self.files).get("run"), self.run, self._begun)

    def _goes_on(self, run: Run) -> bool:
        if run.continues is None:
            return False
        place, folder = run.continues.absolute().parent, self.path.absolute()
        return place == folder or place.resolve() == folder.resolve()

    def _check_owner(self, run: Run) -> None:
        if self._overwrite or run.overwrite:
            return
        folder = self.path.absolute()
        whole = [*_newest_first(folder, self.files)]
        newest = next(filter(None, (_manifest(path, self.files) for path in whole)), None)
        if not whole or (newest and _owns(newest.get("run"), run.id, self._goes_on(run))):
            return
        if self._is_untrained():
            return
        raise FileExistsError(_refusal(newest, self._given, folder, self.files))

    def _is_untrained(self) -> bool:
        """Whether all that is there is of one run, which has ended without a committed step."""
        folder = self.path.absolute()
        there = sorted(listing(folder, self.files).items())
        found = [_manifest(path, self.files) for _, path in there]
        runs = {manifest.get("run") for manifest in found}
        one = len(runs) == 1 and None not in runs
        return one and found[-1]["status"].endswith(UNTRAINED)


def _owns(owner: str | None, run: str | None, begun: bool) -> bool:
    """Those without an identity are a run's own if it goes on from one in the same folder."""
    return owner == run or (begun and owner is None)


def run_of(checkpoint: Path, files: Files) -> str | None:
    """The identity of the run that saved a checkpoint.

    One that was saved by hand (`fl.save`) has none; then that of the newest beside it that has.
    """
    run = _manifest(checkpoint, files).get("run")
    if run is None:
        beside = _newest_first(checkpoint.parent, files)
        run = next(filter(None, (_manifest(path, files).get("run") for path in beside)), None)
    return run


def _newest_first(folder: Path, files: Files) -> Iterator[Path]:
    """Its checkpoints that have a manifest."""
    there = sorted(listing(folder, files).items(), reverse=True)
    return (path for _, path in there if is_there(path / MANIFEST, files))


def _manifest(path: Path, files: Files) -> dict[str, Any]:
    """The manifest; empty if it is damaged.

    Raises:
        UnreadableError: It cannot be read now.
    """
    try:
        return read_manifest(path, files=files)
    except UnreadableError:
        raise
    except CheckpointError:
        return {}


def _refusal(manifest: dict[str, Any] | None, given: str, folder: Path, files: Files) -> str:
    which = "which cannot be read"
    if manifest:
        how, epoch, count = standing(manifest)
        which = f"{how}, epoch {epoch}, {count} batches"
    numbers = range(2, 1 << 30)
    free = next(n for n in numbers if not is_there(folder.with_name(f"{folder.name}-{n}"), files))
    return (
        f"{given} holds another run ({which}), which is not overwritten. Choose one:\n"
        f"  go on with it:  fl.fit(..., resume={_quoted(given)})\n"
        f"  start over:     fl.fit(..., overwrite=True)  # deletes its checkpoints\n"
        f"  keep both:      fl.checkpoint({_quoted(f'{given}-{free}')}, ...)"
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
