"""A tracker for smoke runs."""

from __future__ import annotations

from collections.abc import Mapping

from fnloop.trackers.base import Tracker
from fnloop.trackers.shown import Shown


class Nowhere(Tracker):
    """Takes all of a smoke run, and keeps nothing."""

    takes = (Shown,)

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        pass

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        pass
