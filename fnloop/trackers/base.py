"""The protocol of trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Tracker:
    """Where a run's numbers go. Subclass it for a tracker of your own, and pass it to `fl.track`.

    `open` and `close` are called on the thread that trains, `log` on one other thread, never two
    at once.

    Attributes:
        id: What names this run in the tracker; a JSON value, known once `open` has returned. It is
            kept with every checkpoint, so that a resumed run goes on where it stopped.

    >>> class Print(Tracker):
    ...     def log(self, numbers, step, epoch):
    ...         print(step, numbers)
    """

    id: str | None = None

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        """Called before the first step; raise here if nothing can be written.

        Args:
            config: Hyperparameters: nested dicts and lists of numbers, strings, bools and None.
            run: The `id` of the run to go on with; None for a new one.
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

    def close(self, status: str) -> None:
        """Called once, after the last point; `status` as for `fl.Effect.close`."""
