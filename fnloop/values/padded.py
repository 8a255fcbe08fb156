"""Batches to which something was added that must not count."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Padded(NamedTuple):
    """A batch that `fl.data.pad` made. The loss leaves out what was added, by mask and weight.

    Attributes:
        batch: The joined examples, in their structure.
        mask: For each padded field, by its name: bool[examples, length], true where the example is.
            A tensor alone if the examples are sequences themselves.
        weight: float32[examples]: 1 for an example, 0 for one that was repeated to fill the batch.
    """

    batch: Any
    mask: Any
    weight: Tensor
