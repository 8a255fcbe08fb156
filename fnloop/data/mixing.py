"""``mix``: each batch is one of several data sets, in random order and given proportions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fnloop.data.combined import Combined, PartReader
from fnloop.data.order import refusal
from fnloop.data.permutation import permute
from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.counts import as_count


@explained
def mix(
    *parts: Any,
    weights: Sequence[float] | None = None,
    batches: int | None = None,
    seed: int = 0,
) -> Mixed:
    """Data each batch of which is the next one of one of its parts, in random order.

    The proportions are exact in each epoch, to whole batches; their order is shuffled anew. A part
    that has ended begins its next epoch, and goes on there in the next epoch of the mixture, so
    that all of its examples come equally often. Without weights, each part is gone through once.

    Resumes at every step as its parts do: the order is a function of `seed` and the epoch.

    Args:
        parts: Each is anything that `fl.run` accepts and that can begin anew.
        weights: For each part, how many of the batches come from it, relative to the others; above
            0. None takes their lengths.
        batches: Batches in an epoch; None takes as many as all parts have.
        seed: Seed of the order, any integer.

    Raises:
        TypeError: A part is not accepted, or goes on from a position of its own.
        ValueError: There is none, or one does not know its length; or `weights` are not one number
            above 0 for each, or so small that a part gets no batch.

    >>> from fnloop.data.sources import one_epoch
    >>> list(one_epoch(mix(["a0", "a1", "a2", "a3"], ["b0", "b1"])))
    ['a0', 'b0', 'a1', 'a2', 'b1', 'a3']
    >>> list(one_epoch(mix(["a0", "a1", "a2", "a3"], ["b0", "b1"], weights=(1, 2))))
    ['a0', 'b0', 'b1', 'a1', 'b0', 'b1']
    """
    return Mixed({str(i): part for i, part in enumerate(parts)}, weights, batches, seed)


class Mixed(Combined):
    """The source that `mix` makes."""

    def __init__(self, parts: Mapping[str, Any], weights: Any, batches: Any, seed: Any) -> None:
        super().__init__("mix", parts)
        self._names, self._lengths = [*self._parts], [*self.lengths().values()]
        self._seed = as_count(seed, "seed", least=None)
        total = sum(self._lengths)
        if batches is not None:
            total = as_count(batches, "mix(batches=...)", 1)
        self._shares = _shares(_checked(weights, self._lengths), total)
        self.batches = self._total = total
        self._known = _Order(-1, np.empty(0), np.empty(0))

    def read(self, readers: Mapping[str, PartReader], epoch: int, index: int) -> tuple[Any, bool]:
        """See `Combined`."""
        order = self._order(epoch)
        part = int(order.parts[index])
        read = epoch * self._shares[part] + int(order.before[index])
        batch, _ = readers[self._names[part]].at(*divmod(read, self._lengths[part]))
        return batch, index + 1 == self._total

    def about(self) -> dict[str, Any]:
        """Adds the batches of each part in an epoch, and the seed."""
        return super().about() | {"mixed": self._shares, "seed": self._seed}

    def ordered(self) -> Mixed:
        """See `Source`."""
        raise refusal("fl.data.mix shuffles its parts", "use fl.data.concat")

    def __repr__(self) -> str:
        return f"mix({' + '.join(map(str, self._shares))} batches, seed={self._seed})"

    def _order(self, epoch: int) -> _Order:
        known = self._known  # read once and assigned once, as threads may share it
        if known.epoch != epoch:
            places = permute(torch.arange(self._total), self._total, self._seed, epoch)
            ends = torch.tensor(self._shares).cumsum(0)
            parts = torch.searchsorted(ends, places, right=True)
            before = torch.empty_like(parts)
            for number, share in enumerate(self._shares):
                before[parts == number] = torch.arange(share)
            self._known = known = _Order(epoch, parts.numpy(), before.numpy())
        return known


class _Order(NamedTuple):
    """The order of an epoch.

    Attributes:
        parts: int64[batches]: the part of each batch.
        before: int64[batches]: how many batches of that part come before it.
    """

    epoch: int
    parts: np.ndarray
    before: np.ndarray


def _checked(weights: Any, lengths: list[int]) -> list[float]:
    if weights is None:
        return [float(length) for length in lengths]
    try:
        found = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        found = []
    if len(found) != len(lengths) or not all(0 < w < math.inf for w in found):
        raise ValueError(
            f"fl.data.mix(weights=...) takes a number above 0 for each of its {len(lengths)} "
            f"parts, such as {tuple(range(len(lengths), 0, -1))}; got {short(weights)}. Leave out "
            "a part that is not to come."
        )
    return found


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole batches in proportion to the weights: the largest remainders are rounded up.

    >>> _shares([0.5, 0.3, 0.2], 9)
    [4, 3, 2]
    """
    exact = [weight / sum(weights) * total for weight in weights]
    # A share of 2.9999999999 batches is one of 3.
    shares = [math.floor(round(share, 6)) for share in exact]
    rest = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in rest[: total - sum(shares)]:
        shares[i] += 1
    if 0 in shares:
        number = shares.index(0)
        raise ValueError(
            f"fl.data.mix gives part {number} no batch in an epoch of {total}, by the weights "
            f"{short(tuple(weights))}. Make the epoch longer, batches=, or its weight larger."
        )
    return shares
