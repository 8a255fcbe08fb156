"""The protocol of trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.names.keywords import Explained
from fnloop.trackers.shown import Shown


class Tracker(Explained):
    """Stores a run's metrics. Subclass it for your own tracker, and pass it to `fl.track`.

    `open`, `rewind` and `close` are called on the training thread, `log` and `show` on one other
    thread, never two at once.

    Attributes:
        takes: The kinds of values that `show` takes, such as ``(fl.trackers.Image,)``.
        id: The run's name in the tracker; a JSON value, set by `open`. It is kept with every
            checkpoint, so that a resumed run continues the same tracker run.
        place: The file or folder that is written, as an absolute path, set by `open`; None if there
            is none. It is kept with every checkpoint.
        place_before: The `place` of the run that is resumed; set before `open` is called.

    >>> class Print(Tracker):
    ...     def log(self, numbers, step, epoch):
    ...         print(step, numbers)
    """

    takes: tuple[type[Shown], ...] = ()
    id: str | None = None
    place: Path | None = None
    place_before: Path | None = None

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        """Called before the first step; raise here if nothing can be written.

        Args:
            config: Hyperparameters: nested dicts and lists of numbers, strings, bools and None.
            run: The `id` of the run to continue; None for a new one.
        """

    def rewind(self, step: int) -> None:
        """Called after `open` when a run is resumed: points after `step` will be written again.

        A run that was killed has written more points than its last checkpoint knows of. Without
        this method they stay, and their steps are there twice.

        Args:
            step: Batches drawn until where the run goes on.
        """

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        """Write one point.

        Args:
            numbers: Values by metric name, such as ``"val/loss"``.
            step: Batches drawn so far.
            epoch: The epoch of the last of them, counted from 1.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define log(self, numbers, step, epoch)."
        )

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        """Write a picture, a text, ...: a value of a kind that it `takes`.

        Args:
            name: Its name, such as ``"samples"`` or ``"params/0.weight"``.
            value: The value.
            step: As for `log`.
            epoch: As for `log`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} takes {value.kind}, so it must define "
            "show(self, name, value, step, epoch)."
        )

    def close(self, status: str) -> None:
        """Called once, after the last point; `status` as for `fl.base.Effect.close`."""
