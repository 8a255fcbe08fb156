"""What is trained: three models from tiny to small, each with batches that are in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXAMPLE = Path(__file__).parents[2] / "examples" / "char_gpt.py"


class Problem(NamedTuple):
    """A model, a loss, and batches.

    Attributes:
        model: Builds the model.
        loss: ``(model, batch) -> loss``.
        batches: 32 of them.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    batches: list[Any]


def mlp() -> Problem:
    """64-128-128-10, batches of 64: what a step costs beyond arithmetic."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    return Problem(model, _classify, _labelled(64))


def cnn() -> Problem:
    """Two convolutions and a linear layer on 64 images of 28 x 28."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
        )  # fmt: skip

    return Problem(model, _classify, _labelled(1, 28, 28))


def gpt() -> Problem:
    """The model of ``examples/char_gpt.py``, 12 windows of 64 characters."""
    spec = importlib.util.spec_from_file_location("char_gpt", _EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    windows = torch.randint(65, (32, 12, 65), generator=torch.Generator().manual_seed(0))
    return Problem(lambda: example.GPT(65, 64, 4, 4, 128), example.loss, list(windows))


PROBLEMS = {"mlp": mlp, "cnn": cnn, "gpt": gpt}


def _classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _labelled(*shape: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(64, *shape, generator=g), torch.randint(10, (64,), generator=g))
        for _ in range(32)
    ]
