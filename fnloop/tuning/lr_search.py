"""``LrSearch``: the losses of a learning-rate range test, and what they suggest."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fnloop.tuning.lr_plot import draw

_SKIPPED = 10
"""One in so many candidates, at the start, is not suggested: there averages are of few losses."""


def running_average(
    losses: Sequence[float], decay: float, weights: Sequence[float] = ()
) -> list[float]:
    """Exponential moving averages with bias correction; nan where a loss is not finite.

    The average starts at zero, so after k losses it is divided by ``1 - decay**k`` (Kingma and Ba,
    2015, section 3). A constant loss is its own average from the first one on.

    Args:
        losses: One after the other.
        decay: Of what came before.
        weights: Of each loss, such as its number of examples; default equal ones.

    >>> running_average([1.0, 1.0, 1.0], 0.98)
    [1.0, 1.0, 1.0]
    >>> running_average([1.0, float("nan"), 3.0], 0.5)
    [1.0, nan, 2.3333333333333335]
    >>> running_average([1.0, 4.0], 0.5, weights=[2.0, 1.0])
    [1.0, 2.5]
    """
    found, total, weight = list[float](), 0.0, 0.0
    for loss, own in zip(losses, weights or [1.0] * len(losses), strict=True):
        if not (math.isfinite(loss) and own > 0):
            found.append(math.nan)
            continue
        total = decay * total + (1 - decay) * own * loss
        weight = decay * weight + (1 - decay) * own  # 1 - decay**k, rounded as the total is
        found.append(total / weight)
    return found


@dataclasses.dataclass(frozen=True)
class LrSearch:
    """What `fl.tuning.find_lr` has found.

    Attributes:
        name: The learning rate that was tried, such as ``"adamw.lr"``.
        lrs: The candidates that were tried, in order.
        losses: The loss of the step with each of them; nan for a step that was skipped.
        decay: Of the moving averages in `smoothed`.
        planned: How many candidates there were.
        weights: Of each loss in the averages, such as the number of examples of a last batch that
            is smaller; none where all are equal.
    """

    name: str
    lrs: list[float]
    losses: list[float]
    decay: float
    planned: int
    weights: Sequence[float] = ()

    @functools.cached_property
    def smoothed(self) -> list[float]:
        """The losses, averaged there and back.

        A `running_average` alone lags by ``decay / (1 - decay)`` candidates, and a suggestion from
        it was too high by as much. On the way back, what follows the lowest average counts no more
        than the median of those before: an explosion would reach far.
        """
        there = running_average(self.losses, self.decay, self.weights)
        end = _lowest(there) + 1
        before = [value for value in there[:end] if math.isfinite(value)]
        level = statistics.median(before) if before else math.nan
        there[end:] = [min(value, level) for value in there[end:]]
        return running_average(there[::-1], self.decay, self.weights[::-1])[::-1]

    @functools.cached_property
    def suggestion(self) -> float | None:
        """Where `smoothed` falls most steeply along log lr; None if it does not fall.

        Smith (2015, "Cyclical learning rates for training neural networks", section 3.3) reads
        the rate off this curve; to take its steepest point is fastai's rule. The slope is that of
        ``numpy.gradient(smoothed, log(lr))``, after the first tenth of the candidates and up to the
        lowest loss: after it come losses that fall back from an explosion. A fall of less than
        twice the standard deviation from one loss to the next is taken for noise.
        """
        points = self._points
        if len(points) < 2 or not self._falls:
            return None
        indices, x, y = zip(*points, strict=True)
        grid = torch.tensor(x, dtype=torch.float64)
        (slopes,) = torch.gradient(torch.tensor(y, dtype=torch.float64), spacing=(grid,))
        steepest = int(slopes.argmin())
        return self.lrs[indices[steepest]] if slopes[steepest] < 0 else None

    @property
    def reason(self) -> str:
        """Why there is no suggestion; empty if there is one."""
        return reason_of(self, "min_lr=", "max_lr=", "steps=")

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the losses over the learning rates, and the suggestion.

        Args:
            path: Image file to write (.png, .pdf, .svg); default none.

        Returns:
            A matplotlib ``Figure``. As the last value of a notebook's cell it is shown.

        Raises:
            ImportError: Where matplotlib is missing.
        """
        return draw(self.name, self.lrs, self.losses, self.smoothed, self.suggestion, path)

    def table(self, rows: int = 12) -> str:
        """Candidates with their losses, evenly chosen, the suggestion among them."""
        last = len(self.lrs) - 1
        chosen = {round(i * last / max(rows - 1, 1)) for i in range(rows)} if last >= 0 else set()
        best = None if self.suggestion is None else self.lrs.index(self.suggestion)
        chosen |= set() if best is None else {best}
        lines = [f"{'lr':>9}  {'loss':>9}  {'smoothed':>9}"]
        for i in sorted(chosen):
            mark = "  <- suggestion" if i == best else ""
            numbers = (self.lrs[i], self.losses[i], self.smoothed[i])
            lines.append("  ".join(f"{number:>9.3g}" for number in numbers) + mark)
        return "\n".join(lines)

    def __repr__(self) -> str:
        tried = "no candidate"
        if self.lrs:
            tried = f"{len(self.lrs)} of {self.planned} candidates, up to {self.lrs[-1]:.3g}"
        if self.suggestion is None:
            return f"find_lr: no suggestion for {self.name}; {self.reason} ({tried})"
        return f"find_lr: {self.name} = {self.suggestion:.3g} ({tried})"

    @functools.cached_property
    def _points(self) -> list[tuple[int, float, float]]:
        """What may be suggested: number of the candidate, log lr, smoothed loss."""
        first, last = self.planned // _SKIPPED, _lowest(self.smoothed)
        tried = enumerate(zip(self.lrs, self.smoothed, strict=True))
        return [
            (i, math.log(lr), loss)
            for i, (lr, loss) in tried
            if first <= i <= last and math.isfinite(loss)
        ]

    @property
    def _falls(self) -> bool:
        """Whether the loss falls by more than it fluctuates, up to its lowest value."""
        end = _lowest(self.smoothed) + 1
        # A small batch's loss fluctuates more, which says nothing about the others.
        weights = self.weights or [1.0] * len(self.losses)
        pairs = zip(self.losses[:end], weights[:end], strict=True)
        finite = [x for x, own in pairs if math.isfinite(x) and own > max(weights) / 2]
        means = [mean for mean in self.smoothed[:end] if math.isfinite(mean)]
        if len(finite) < 2:
            return False
        # Of normal noise, half of the steps from one loss to the next are below 0.954 deviations;
        # the median does not mind the few along which the loss falls.
        steps = [abs(after - before) for before, after in itertools.pairwise(finite)]
        return max(means) - min(means) > 2 * statistics.median(steps) / 0.954


def reason_of(found: LrSearch, first: str, last: str, count: str) -> str:
    """Why there is no suggestion; empty if there is one.

    Args:
        found: What was found.
        first, last, count: What sets the first and the last candidate, and how many there are.
    """
    if found.suggestion is not None:
        return ""
    finite = sum(map(math.isfinite, found.losses))
    if not finite:
        return "no loss was finite: look at the first step, and at the data, for nan"
    if finite < len(found.losses) // 2:
        return f"only {finite} of {len(found.losses)} losses were finite: start lower ({first})"
    return (
        f"the loss does not fall by more than it fluctuates: try other limits ({first}, {last}), "
        f"more {count}, or larger batches"
    )


def _lowest(values: Sequence[float]) -> int:
    """The index of the lowest finite value; 0 if there is none."""
    finite = [i for i, value in enumerate(values) if math.isfinite(value)]
    return min(finite, key=values.__getitem__, default=0)
