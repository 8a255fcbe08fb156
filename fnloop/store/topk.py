"""Which checkpoints are the best k: pure functions."""

from __future__ import annotations

import dataclasses

from fnloop.store.folders import badness


@dataclasses.dataclass(frozen=True)
class TopK:
    """The best `keep` of the scores seen so far.

    The rules are those of Lightning's ModelCheckpoint: with fewer than `keep`, every score is
    taken; then only a score that is strictly better than the worst, which it replaces. Of several
    worst ones the first is replaced. nan is the worst score.

    Args:
        keep: How many to keep; None keeps all.
        mode: "min" if smaller is better, or "max".
        entries: Pairs of count and score, in the order they came.

    >>> TopK(2).add(1, 5.0).add(2, 3.0).add(3, 4.0).entries
    ((2, 3.0), (3, 4.0))
    """

    keep: int | None
    mode: str = "min"
    entries: tuple[tuple[int, float], ...] = ()

    def add(self, count: int, score: float) -> TopK:
        """The best including `score` at `count`; the same object if it is not among them."""
        entries = (*self.entries, (count, score))
        if self.keep is not None and len(self.entries) >= self.keep:
            if not self.entries:
                return self
            worst = max(self.entries, key=self._badness)  # the first of equals
            if self._badness((count, score)) >= self._badness(worst):
                return self
            entries = tuple(entry for entry in entries if entry is not worst)
        return dataclasses.replace(self, entries=entries)

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts of the entries."""
        return tuple(count for count, _ in self.entries)

    def _badness(self, entry: tuple[int, float]) -> float:
        return badness(entry[1], self.mode)
