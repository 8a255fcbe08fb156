"""Which checkpoints of a run are kept: pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from fnloop.store.topk import TopK


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept and which are to be deleted, by count of batches.

    Args:
        top: The best so far.
        newest: How many of the newest are kept, whatever their score; None keeps all.
        recent: Counts of the newest that are kept, oldest first.
        unneeded: Counts of those to be deleted.

    >>> kept = Retention(TopK(0), newest=2)
    >>> for count in (1, 2, 3):
    ...     kept = kept.add(count, None, due=True)
    >>> kept.recent, kept.unneeded
    ((2, 3), (1,))
    """

    top: TopK
    newest: int | None
    recent: tuple[int, ...] = ()
    unneeded: tuple[int, ...] = ()

    def add(
        self, count: int, score: float | None, due: bool, requested: bool = False
    ) -> Retention | None:
        """The decision after saving the state at `count`; None if it need not be saved.

        Args:
            count: Batches drawn.
            score: The monitored metric, if it was reported.
            due: Whether saving the newest state is due.
            requested: Whether to save in any case, as SIGUSR1 asks.
        """
        top = self.top if score is None else self.top.add(count, score)
        if top is self.top and not requested and not (due and self.newest != 0):
            return None
        recent = self.recent
        if requested and self.newest == 0:
            recent = (count,)  # until the next request
        elif self.newest != 0:
            recent = _last(self.newest, (*recent, count))
        return dataclasses.replace(self, top=top, recent=recent)._without(self.counts)

    def left(self, count: int) -> Retention:
        """Something is there of `count`, which is not kept: it is to be deleted."""
        return self._without({count})

    @property
    def counts(self) -> set[int]:
        """All that are kept."""
        return {*self.top.counts, *self.recent}

    def of(self, own: Collection[int]) -> Retention:
        """Of those to be deleted, only the run's `own`."""
        unneeded = tuple(count for count in self.unneeded if count in own)
        return dataclasses.replace(self, unneeded=unneeded)

    def only(self, there: Collection[int]) -> Retention:
        """Without those that are no longer `there`."""
        entries = tuple(entry for entry in self.top.entries if entry[0] in there)
        return dataclasses.replace(
            self,
            top=dataclasses.replace(self.top, entries=entries),
            recent=tuple(count for count in self.recent if count in there),
        )

    def deleted(self, count: int) -> Retention:
        """After `count` was deleted."""
        return dataclasses.replace(
            self, unneeded=tuple(other for other in self.unneeded if other != count)
        )

    def memo(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "mode": self.top.mode,
            "best": [list(entry) for entry in self.top.entries],
            "recent": list(self.recent),
            "unneeded": list(self.unneeded),
        }

    def recall(self, memo: Mapping[str, Any], same_monitor: bool) -> Retention:
        """Restore a memo; if the monitor has changed, the best so far are neither kept nor deleted.

        Raises:
            ValueError: It holds invalid counts.
        """
        scores = dict[int, Any](memo["best"])
        best = dict(zip(_counts(scores), map(float, scores.values()), strict=True))
        known = {*_counts(memo["recent"]), *_counts(memo["unneeded"])}
        recent = [count for count in memo["recent"] if same_monitor or count not in best]
        top = dataclasses.replace(self.top, entries=())
        for count, score in best.items() if same_monitor else ():
            top = top.add(count, score)
        # Without `last`, keep one that was requested: the run may be resuming from it.
        newest = 1 if self.newest == 0 else self.newest
        kept = dataclasses.replace(self, top=top, recent=_last(newest, tuple(recent)))
        return kept._without(known | best.keys() if same_monitor else known - best.keys())

    def _without(self, known: Collection[int]) -> Retention:
        unneeded = {*self.unneeded, *known} - self.counts
        return dataclasses.replace(self, unneeded=tuple(sorted(unneeded)))


def _counts(values: Collection[Any]) -> list[int]:
    if odd := [value for value in values if type(value) is not int or not 0 <= value < 2**63]:
        raise ValueError(f"{str(odd[0])[:40]!r} is no count of batches")
    return [*values]


def _last(newest: int | None, counts: tuple[int, ...]) -> tuple[int, ...]:
    return counts if newest is None else counts[-newest:]
