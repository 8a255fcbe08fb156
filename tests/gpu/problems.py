"""What the checks train: small models, with batches on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnloop as fl

BATCH, WIDTH, CLASSES = 8, 16, 4


class Net(nn.Module):
    """Batch statistics, dropout, tied weights, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.3)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, CLASSES)
        self.frozen = nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.gelu(self.norm(self.first(x)))) * self.frozen
        return self.head(F.gelu(self.second(x)))


class Attention(nn.Module):
    """Causal self-attention over the rows of an example; heads of 16."""

    def __init__(self, width: int = 2 * WIDTH) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.width // WIDTH, WIDTH)
        q, k, v = self.project(self.norm(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.drop(self.out(y.transpose(1, 2).reshape(x.shape)))


class Recurrent(nn.Module):
    """An LSTM, and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


def transformer() -> nn.Module:
    """A block of attention between two linear layers."""
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH), Attention(), nn.Flatten(), nn.Linear(8 * 2 * WIDTH, CLASSES)
    )


def convolutional() -> nn.Module:
    """A convolution with batch statistics and dropout of channels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Dropout2d(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def dropping() -> nn.Module:
    """A model with dropout, and without batch statistics."""
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, CLASSES))


class Case(NamedTuple):
    """A model, and the shape of its examples."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = {
    "dropout, batch statistics, tied weights": Case(Net, (WIDTH,)),
    "attention": Case(transformer, (8, WIDTH)),
    "convolution": Case(convolutional, (8, WIDTH)),
    "lstm": Case(Recurrent, (5, WIDTH)),
}


def loss(model: Any, batch: Any) -> Any:
    """Cross-entropy, with the accuracy."""
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}


def smooth() -> nn.Module:
    """A model without randomness and batch statistics."""
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, CLASSES))


def arrays(n: int, shape: tuple[int, ...] = (WIDTH,), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Examples and labels, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    return x, x.flatten(1)[:, :CLASSES].argmax(1)


def batches(
    n: int, device: str, shape: tuple[int, ...] = (WIDTH,), size: int = BATCH
) -> list[tuple[Tensor, Tensor]]:
    """Batches on the device."""
    return [tuple(t.to(device) for t in arrays(size, shape, seed)) for seed in range(n)]  # type: ignore[misc]


def bad(device: str, shape: tuple[int, ...] = (WIDTH,)) -> tuple[Tensor, Tensor]:
    """A batch whose gradient is not finite."""
    x, y = arrays(BATCH, shape)
    return (x * float("nan")).to(device), y.to(device)


def simple(optimizer: Any = None, *around: Any) -> Any:
    """A step with one optimizer; `around` stands between gradient and update."""
    return fl.pipe(loss, fl.grad, *around, fl.update(optimizer or fl.optim.adamw(1e-2)))


def everything(half: bool = True) -> Any:
    """A step with most stages, in half precision or not."""
    schedule = fl.schedules.cosine(1e-2, steps=50, warmup=3)
    return fl.pipe(
        loss,
        fl.grad,
        fl.accumulate(2),
        *([fl.amp("fp16", init_scale=2.0**8, interval=3)] if half else []),
        fl.update(fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(schedule))),
        fl.ema(0.9),
        fl.guard(fl.rules.spike("loss", sigmas=50.0, warmup=2)),
    )


def started(step: Any, build: Callable[[], nn.Module], device: str) -> fl.State:
    """The first state of a step, on the device."""
    return step.init(build, seed=0).to(device)


def backend(device: str) -> str:
    """What compiles: Inductor on the device; on the CPU, where other tests try it, nothing."""
    return "aot_eager" if device == "cpu" else "inductor"
