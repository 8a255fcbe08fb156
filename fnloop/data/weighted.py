"""Orders of an epoch in which examples are drawn by weight, with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.trees.show import short
from fnloop.values.key import fold

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MASK = (1 << 64) - 1


class WeightedOrder:
    """Draws an example for each position of an epoch, with a probability by its weight.

    What is drawn at a position is a function of the seed, the epoch and the position alone: the
    first example up to which the weights sum to more than a uniform random share of all.

    Args:
        weights: float64[n] on the CPU, from `checked_weights`.
        seed: Any integer.
        devices: Where the order is wanted.
    """

    def __init__(
        self,
        weights: Tensor,
        seed: int,
        devices: Sequence[torch.device] = (torch.device("cpu"),),
    ) -> None:
        sums = weights.numpy().cumsum()
        self._sums, self._seed, self._devices = sums / sums[-1], seed, devices

    def at(self, epoch: int, start: int, stop: int) -> list[Tensor]:
        """The examples at positions `start` to `stop` of an epoch: int64[n] for each device."""
        random = uniform(fold(self._seed, "weights", epoch), start, stop)
        examples = torch.from_numpy(self._sums.searchsorted(random, side="right"))
        return [examples.to(device) for device in self._devices]


def uniform(seed: int, start: int, stop: int) -> np.ndarray:
    """Random numbers from 0 to 1, without 1: float64, those of positions `start` to `stop`.

    They are the outputs of SplitMix64 with this seed (Steele, Lea & Flood, "Fast splittable
    pseudorandom number generators", 2014), which are independent of one another; of each, the
    highest 53 bits.

    >>> [int(x * 2**53) for x in uniform(1234567, 0, 2)] == [
    ...     6457827717110365317 >> 11, 3203168211198807973 >> 11]
    True
    """
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * _GOLDEN + np.uint64(seed & _MASK)
    for shift, multiplier in _MIX:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(multiplier)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def checked_weights(weights: Any, examples: int) -> Tensor:
    """The weights of all examples as float64[n] on the CPU.

    Raises:
        ValueError: They are no numbers, one for each example; or one is negative or not finite, or
            all are zero.
    """
    try:
        found = torch.as_tensor(weights).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(0, 0)
    if found.shape != (examples,):
        got = short(weights) if isinstance(weights, Tensor) else type(weights).__name__
        count = f" of {len(found)}" if found.ndim == 1 else ""
        raise ValueError(
            f"fl.Batches(weights=...) takes a number for each of the {examples} examples, in the "
            f"order of the data; got {got}{count}. Weights of classes are those of examples by "
            "their labels: weights=per_class[labels]."
        )
    wrong = (~((found >= 0) & found.isfinite())).nonzero()
    if len(wrong) or not float(found.sum()) > 0:
        what = (
            f"that of example {int(wrong[0])} is {float(found[wrong[0]]):g}"
            if len(wrong)
            else "all are 0"
        )
        raise ValueError(
            f"fl.Batches(weights=...) takes numbers of at least 0, one of them above 0; {what}. "
            "Usual cause: a class without examples, whose weight 1 / count is infinite."
        )
    return found
