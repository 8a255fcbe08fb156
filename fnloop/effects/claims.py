"""Which of the runs in this process writes to a file or a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

_CLAIMS: Counter[str] = Counter()  # how often each place has been claimed


class Claim:
    """Held by what writes to a place; see `claim`."""

    def __init__(self, place: str = "") -> None:
        _CLAIMS[place] += 1
        self._place, self._number = place, _CLAIMS[place]

    def holds(self) -> bool:
        """Whether nobody has claimed the place since."""
        return _CLAIMS[self._place] == self._number


def claim(place: Path) -> Claim:
    """Claim a file or a folder for a run that begins to write to it.

    A run that was broken off may be closed late: a generator of `fl.run` when it is collected,
    which a notebook delays as long as it keeps the exception. If another run has gone on in the
    same place by then, the late one must not write there.

    >>> first, second = claim(Path("runs/a")), claim(Path("runs/a"))
    >>> first.holds(), second.holds()
    (False, True)
    """
    return Claim(str(place.absolute()))
