"""Slopes by forward mode."""

from __future__ import annotations

import functools
import warnings

import torch


@functools.cache
def prepare() -> None:
    """Let torch import what ``torch.func.jvp`` needs, which warns of its own deprecated calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # of another class from 2.14 on
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
