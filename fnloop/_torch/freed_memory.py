"""Memory that a step frees stays with the process, for the next step."""

from __future__ import annotations

import contextlib

import torch

_BLOCK = 31 * 2**20
"""Bytes: a little less than the most that glibc's thresholds follow."""


def keep_freed() -> None:
    """Have glibc keep up to 62 MB that are free, in place of giving them back to the system.

    How much it keeps follows the largest block that it has given back, and begins with 256 KB. A
    step frees its activations and gradients; the next one would get all pages anew, and zeroed, in
    up to half of its time. Here one block is allocated and given back, of which nothing is ever
    touched. It means nothing to other C libraries.
    """
    with contextlib.suppress(RuntimeError):  # a process may be allowed less memory
        torch.UntypedStorage(_BLOCK, device="cpu")
