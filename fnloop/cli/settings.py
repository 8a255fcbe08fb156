"""The history of a run's flags, which may change at each resume."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fnloop.cli import config
from fnloop.cli.sweep_folder import NAME
from fnloop.effects.effect import Effect, Run
from fnloop.values.cursor import Cursor
from fnloop.values.state import State


class Settings(Effect):
    """Saves in each checkpoint the flags and from which batch on they held; writes ``config.yaml``.

    The file is written only when the run begins, so not by one that cannot start.

    Args:
        recipe: The recipe file.
        flags: Values by flag.
        folder: The run's folder; None if nothing is saved.
    """

    name = "settings"

    def __init__(self, recipe: Path, flags: Mapping[str, Any], folder: Path | None) -> None:
        self._recipe, self._flags, self._folder = recipe, dict(flags), folder
        self._past: list[tuple[int, dict[str, Any]]] = []

    def open(self, run: Run) -> None:
        count = Cursor.of(run.state.cursor).count
        if run.total != 0:  # else there is no step with these flags
            past = [entry for entry in self._past if entry[0] < count]
            changed = not past or past[-1][1] != self._flags
            self._past = [*past, (count, self._flags)] if changed else past
            if self._folder is not None:
                config.write(self._recipe, self._flags, self._folder)
                (self._folder / NAME).unlink(missing_ok=True)  # of a sweep that was overwritten

    def __call__(self, state: State, metrics: Any) -> None:
        """Does nothing."""

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return False

    def memo(self) -> Any:
        return [{"from": count, "flags": flags} for count, flags in self._past]

    def recall(self, memo: Any) -> None:
        self._past = segments_in(memo)


def segments_in(memo: Any) -> list[tuple[int, dict[str, Any]]]:
    """Pairs of a number of batches drawn, and the flags from there on."""
    return [(int(entry["from"]), dict(entry["flags"])) for entry in memo]
