"""The shuffled order of an epoch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fnloop.data.permutation import permute_epochs

_EPOCHS_AHEAD = 16  # epochs shuffled at once, at most, if an epoch has fewer positions than that


class ShuffledOrder:
    """The shuffled positions, computed in blocks of some thousands and cached on each device."""

    def __init__(
        self, examples: int, seed: int, devices: tuple[torch.device, ...], ahead: int
    ) -> None:
        self._examples, self._seed, self._devices, self._ahead = examples, seed, devices, ahead
        self._epochs = max(1, min(_EPOCHS_AHEAD, ahead // examples))
        self._known = _Known(0, 0, 0, [])

    def at(self, epoch: int, start: int, stop: int) -> list[Tensor]:
        """The examples at positions `start` to `stop` of an epoch: int64[n] for each device."""
        known = self._known  # read once and assigned once, as threads may share it
        row = epoch - known.epoch
        if not 0 <= row < len(known.rows) or start < known.start or stop > known.stop:
            known, row = self._look_ahead(epoch, start), 0
            self._known = known
        return [block[start - known.start : stop - known.start] for block in known.rows[row]]

    def _look_ahead(self, epoch: int, start: int) -> _Known:
        if self._epochs > 1:
            start = 0
        stop = min(start + self._ahead, self._examples)
        epochs = range(epoch, epoch + self._epochs)
        block = permute_epochs(
            torch.arange(start, stop, device="cpu"), self._examples, self._seed, epochs
        )
        blocks = [block.to(device).unbind() for device in self._devices]
        return _Known(epoch, start, stop, list(zip(*blocks, strict=True)))


class _Known(NamedTuple):
    """Cached positions from `start` to `stop` of several epochs, the first of which is `epoch`.

    Attributes:
        rows: For each epoch, one tensor per device.
    """

    epoch: int
    start: int
    stop: int
    rows: list[tuple[Tensor, ...]]
