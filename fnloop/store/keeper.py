"""Saves a run's states to its folder, and deletes those that are not needed any more."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.store import tensor_file
from fnloop.store.checkpoint_errors import CheckpointError, UnreadableError
from fnloop.store.commit import discard, sweep
from fnloop.store.folders import listing, target_of
from fnloop.store.manifest import amend, read_manifest
from fnloop.store.pages import detached, put_pages, saveable
from fnloop.store.patience import patiently, write_may_pass
from fnloop.store.retention import Retention
from fnloop.store.run_folder import RunFolder
from fnloop.store.save import leaves_of, save
from fnloop.values.cursor import Cursor
from fnloop.values.signals import let_out
from fnloop.values.state import State

_GUESS = 100e6  # bytes a second, until a save has been timed


class Keeper:
    """The checkpoints of one run, as `Retention` has them kept.

    Of many ranks all decide alike what is saved, and the first alone amends and deletes.

    Args:
        place: The run's folder.
        monitor: Name of the metric that tells which are best, or None.
        kept: Which are kept, of a run that begins.

    Attributes:
        kept: Which are kept now.
        saved: The count that was saved last in this call; None before.
        seconds: The longest that a save has taken; a guess, until one has been timed.
    """

    def __init__(self, place: RunFolder, monitor: str | None, kept: Retention) -> None:
        self.kept, self.saved, self.seconds = kept, None, 0.0
        self._place, self._monitor = place, monitor
        self._timed = False

    def memo(self) -> dict[str, Any]:
        """What is kept with every checkpoint, so that a resumed run goes on with them."""
        return {"run": self._place.run, "monitor": self._monitor, **self.kept.memo()}

    def recall(self, memo: Mapping[str, Any]) -> None:
        """Restore what `memo` returned."""
        mode = self.kept.top.mode
        same = (memo["monitor"], memo["mode"]) == (self._monitor, mode)
        if not same and memo["best"]:
            warnings.warn(
                f"checkpoint: the run monitored {memo['monitor']!r} ({memo['mode']}), and now "
                f"monitors {self._monitor!r} ({mode}). The search for the best starts again; the "
                "best so far stay on the disk.",
                stacklevel=3,
            )
        self.kept = self.kept.recall(memo, same)

    def begin(self, state: State) -> dict[int, Path]:
        """Tidy the folder up, forget those that are gone, and return what is there, by count."""
        self.saved = None
        if not self._place.leads:
            return {}
        self.seconds = self.seconds or tensor_file.size_of(leaves_of(state)) / _GUESS
        folder, files = self._place.path, self._place.files
        patiently(lambda: sweep(folder, files), write_may_pass)
        there, now = listing(folder, files), Cursor.of(state.cursor).count
        known = {*self.kept.counts, *self.kept.unneeded} & there.keys()
        own = self._place.own(known)
        self.kept = self.kept.only({count for count in own if count <= now}).of(own)
        return there

    def adopt(self, there: Mapping[int, Path], name: str) -> None:
        """Also keep what the run's effect `name` saved after the memo that it was resumed from.

        With two such effects, the last checkpoint is one's, and the other's memo in it is older.
        What it saved before, and is there again after a power loss, is to be deleted. What cannot
        be read now may be another run's, so it is left alone.
        """
        known = {*self.kept.counts, *self.kept.unneeded}
        newest = max(known, default=-1)
        for count in sorted(there.keys() - known):
            try:
                manifest = read_manifest(there[count], files=self._place.files)
                memo = manifest["memos"][name]
                before = {entry[0] for entry in memo["best"]}
                own = manifest.get("run") == self._place.run
                if own and count in {*memo["recent"]} - before:
                    later = self.kept.add(count, None, due=True) if count > newest else None
                    self.kept = later or self.kept.left(count)
            except UnreadableError as error:
                warnings.warn(
                    f"checkpoint: {error} {there[count].name} is left alone until it can be read.",
                    stacklevel=3,
                )
            except (CheckpointError, LookupError, TypeError):
                pass  # damaged, or saved by hand

    def save(
        self,
        state: State,
        occasion: tuple[float | None, bool, bool],
        name: str,
        memos: Mapping[str, Any],
        mesh: Mesh,
        **about: Any,
    ) -> bool:
        """Save `state` if it is to be kept; whether it was.

        Args:
            state: The state.
            occasion: Score, whether it is due, and whether it is requested, as for `Retention.add`.
            name: Under which of `memos` this memo goes.
            mesh: The ranks that save together.
            memos, about: As for `fl.save`.

        Raises:
            OSError: It was not saved.
        """
        count = Cursor.of(state.cursor).count
        before, kept = self.kept, self.kept.add(count, *occasion)
        if kept is None:
            return False
        began = time.monotonic()
        try:
            self.kept = kept
            place = self._place
            jointly(mesh, f"the save of {count} batches to {place.path}", place.check_held)
            saved = saveable({**memos, name: self.memo()}) if place.leads else {}
            save(state, place.path, files=place.files, memos=saved, mesh=mesh, **about)
        except BaseException:
            # Of a remote store the answer may have been lost.
            self.kept = before if self._place.files.renames else before.left(count)
            raise
        seconds = time.monotonic() - began
        self.seconds = max(self.seconds if self._timed else 0.0, seconds)
        self.saved, self._timed = count, True
        return True

    def amend(self, memos: Mapping[str, Any], **changes: Any) -> None:
        """Change the manifest of what was saved last.

        Raises:
            OSError: It was not changed.
        """
        assert self.saved is not None
        if not self._place.leads:
            return
        folder, files = self._place.path, self._place.files
        self._place.check_held()
        plain, pages = detached(saveable(memos))
        put_pages(pages, folder, files)
        digests = {path: page.digest for path, page in pages.items()}
        target = target_of(folder, self.saved)
        patiently(
            lambda: amend(target, files, memos=plain, pages=digests, **changes), write_may_pass
        )

    def delete(self) -> OSError | None:
        """Delete what is not needed; what cannot be deleted now, the next call tries again."""
        for count in self.kept.unneeded:
            try:
                if self._place.leads:
                    discard(target_of(self._place.path, count), self._place.files)
            except OSError as error:
                let_out(error)
                return error
            self.kept = self.kept.deleted(count)
        return None
