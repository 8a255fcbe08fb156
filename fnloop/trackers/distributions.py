"""``Histogram``: how values are distributed, as a tracker shows it."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fnloop.trackers.shown import Shown, copied
from fnloop.values.counts import as_count


class Summed(NamedTuple):
    """What a histogram holds, on the host.

    Attributes:
        counts: int64[bins].
        edges: float64[bins + 1], equally far apart.
        total: The sum of the values.
        squares: The sum of their squares.
    """

    counts: np.ndarray[Any, Any]
    edges: np.ndarray[Any, Any]
    total: float
    squares: float


class Histogram(Shown):
    """The distribution of values, to be shown. They are counted at once, where they are.

    The bins are those of ``numpy.histogram``: equally wide, from the least value to the greatest,
    which the last one includes. Values that are not finite are counted apart.

    Args:
        values: A tensor or an array of any shape.
        bins: How many, at most 512.

    >>> found = Histogram(torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=4).read()
    >>> found.counts.tolist(), found.edges.tolist()
    ([1, 2, 0, 1], [0.0, 1.0, 2.0, 3.0, 4.0])
    """

    kind: ClassVar[str] = "histograms"

    def __init__(self, values: Any, bins: int = 64) -> None:
        self.bins = as_count(bins, "fl.trackers.Histogram(bins=...)", 1)
        if self.bins > 512:
            raise ValueError(
                f"fl.trackers.Histogram takes at most 512 bins, which Aim and others can show, got "
                f"{bins}."
            )
        given = values.detach() if isinstance(values, torch.Tensor) else copied(values, _WHO)
        flat = given.ravel()
        if flat.is_complex():
            raise ValueError(f"{_WHO} takes real numbers: give it the absolute values.")
        flat = flat if flat.dtype == torch.float64 else flat.float()
        finite = flat.isfinite()
        # Nothing here asks the device for a number, which would wait for it.
        infinity = flat.new_full((), float("inf"))
        low = torch.where(finite, flat, infinity).amin() if flat.numel() else infinity
        high = torch.where(finite, flat, -infinity).amax() if flat.numel() else -infinity
        low, high = torch.where(low > high, 0.0, low), torch.where(low > high, 1.0, high)
        half = torch.where(low == high, 0.5, 0.0)
        low, high = low - half, high + half
        place = ((flat - low) / ((high - low) / self.bins)).nan_to_num(0.0, 0.0, 0.0).long()
        place = torch.where(finite, place.clamp(0, self.bins - 1), self.bins)
        counts = torch.zeros(self.bins + 1, dtype=torch.int64, device=flat.device)
        self._counts = counts.scatter_add_(0, place, torch.ones_like(place))
        kept = torch.where(finite, flat, 0.0).double()
        self._ends = torch.stack([low.double(), high.double(), kept.sum(), kept.square().sum()])

    @functools.cached_property
    def _read(self) -> Summed:
        low, high, total, squares = self._ends.tolist()
        return Summed(
            self._counts[:-1].cpu().numpy(), np.linspace(low, high, self.bins + 1), total, squares
        )

    def read(self) -> Summed:
        """Counts, edges of the bins, and sums; waits for the device."""
        return self._read

    @property
    def nonfinite(self) -> int:
        """How many values are nan or infinite."""
        return int(self._counts[-1])


_WHO = "fl.trackers.Histogram"
