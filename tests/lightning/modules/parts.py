"""What the modules share: digits, and a small network."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Images f32[200,64] from 0 to 1, and labels i64[200]."""
    found = load_digits()
    x, y = torch.tensor(found.data[:200]), torch.tensor(found.target[:200])
    return x.float() / 16, y.long()


def loader(start: int, stop: int, size: int = 32, **more: object) -> DataLoader:
    """The digits from `start` to `stop`, in their order."""
    x, y = digits()
    return DataLoader(TensorDataset(x[start:stop], y[start:stop]), batch_size=size, **more)  # type: ignore


def network(hidden: int = 16, outputs: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
