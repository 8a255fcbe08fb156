"""One model of the battery: how to build it, what to feed it, and its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

import fnloop as fl


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model, built from its configuration with random weights. Nothing is downloaded.

    Attributes:
        name: Its name in the table.
        library: What has to be installed.
        build: Makes the model, in torch's global random state.
        batch: Makes a batch, in torch's global random state.
        loss: As for `fl.grad`.
        tests: What this model tests, in a few words.
        remedy: What had to be set or written so that it works; empty if nothing.
        cut: Splits a batch into micro-batches, where its leading dimension does not.
        uncut: Why a batch cannot be split without changing the result; empty if it can.
        refused: Words of what `fl.compile` says of it; empty if it compiles.
        double: Whether it is tried in float64. Batch statistics of a few values blow up rounding,
            so that float32 would prove nothing.
        inductor: Whether it is also built by Inductor, which takes a minute.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Any]
    tests: str = ""
    remedy: str = ""
    cut: Callable[[Any], fl.data.Micro] | None = None
    uncut: str = ""
    refused: str = ""
    double: bool = False
    inductor: bool = False
