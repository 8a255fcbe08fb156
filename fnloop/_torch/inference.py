"""Leave ``torch.inference_mode()``, whose tensors cannot be trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch


@contextlib.contextmanager
def outside_inference() -> Generator[None]:
    """Tensors that are made in this block are plain ones, also inside of an inference mode.

    >>> with torch.inference_mode(), outside_inference():
    ...     torch.ones(2).is_inference()
    False
    """
    inside = torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if inside else contextlib.nullcontext():
        yield
