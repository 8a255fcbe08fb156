"""What is trained: cases from tiny to small, each with batches that are in memory."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXAMPLE = Path(__file__).parents[2] / "examples" / "char_gpt.py"

LR = 1e-3
WEIGHT_DECAY = 0.01


class Problem(NamedTuple):
    """A model, a loss, and batches; AdamW trains it, with `LR` and `WEIGHT_DECAY`.

    Attributes:
        name: In `PROBLEMS`.
        build: Builds the model.
        loss: ``(model, batch) -> loss``, a mean over the examples.
        batches: 32 of them, a tensor or a tuple of tensors each.
        micro: Micro-batches in a step, equally large.
        bf16: Whether the model runs under bf16 autocast.
        reads_loss: Whether the loss of each step is read as a number, and kept.
        overhead_bound: Whether arithmetic is a small part of a step.
        pictures: Whether it convolves over the pictures that a batch begins with.
        ready: What a loop by hand does with a batch before it calls a compiled loss.
        rtol: How far the losses of two contenders may be apart after the same few steps.
        left_out: Contenders that this case leaves out, by name, with the reason.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    batches: Sequence[Any]
    micro: int = 1
    bf16: bool = False
    reads_loss: bool = False
    overhead_bound: bool = False
    pictures: bool = False
    ready: Callable[[Any], Any] = lambda batch: batch
    rtol: float = 1e-3
    left_out: Mapping[str, str] = {}

    def model(self) -> nn.Module:
        """The model, with the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def parts(self, batch: Any) -> list[Any]:
        """A batch as micro-batches."""
        if isinstance(batch, Tensor):
            return list(batch.chunk(self.micro))
        return list(zip(*(x.chunk(self.micro) for x in batch), strict=True))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision in which the loss is computed."""
        if self.bf16:
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()


def mlp() -> Problem:
    """64-128-128-10, batches of 64: what a step costs beyond arithmetic."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    return Problem("mlp", build, classify, labelled(64, 64), overhead_bound=True)


def narrow() -> Problem:
    """Ten layers, 32 wide, batches of 64: more kernels, each shorter."""

    def build() -> nn.Module:
        hidden = [layer for _ in range(9) for layer in (nn.Linear(32, 32), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(32, 10))

    return Problem("narrow", build, classify, labelled(64, 32), overhead_bound=True)


def many() -> Problem:
    """A thousand linear layers of 8 x 8 on a residual stream: 2,000 small leaves."""
    slow = "was not compiled within 7 minutes"
    compiles = "would compile for minutes, as another one here does that is much alike"
    return Problem(
        "many",
        Residual,
        classify,
        labelled(64, 8, classes=8),
        overhead_bound=True,
        left_out={
            "by hand, compiled loss and optimizer": "RecursionError, at Python's default limit",
            "by hand, compiled loss, C++ wrapper": compiles,
            "by hand, compiled loss, max-autotune": compiles,
            "fnloop, compiled, donated, fit": compiles,
            "by hand, one graph": slow,
            "by hand, one graph, C++ wrapper": slow,
        },
    )


def logged() -> Problem:
    """The `mlp`, whose loss is read as a number and kept at every step."""
    return mlp()._replace(name="logged", reads_loss=True)


def cnn() -> Problem:
    """Two convolutions and a linear layer on 64 images of 28 x 28."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
        )  # fmt: skip

    return Problem("cnn", build, classify, labelled(64, 1, 28, 28), pictures=True)


def gpt(file: Path = _EXAMPLE) -> Problem:
    """The model of ``examples/char_gpt.py``, 12 windows of 64 characters."""
    spec = importlib.util.spec_from_file_location("char_gpt", file)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example  # Dynamo looks there
    spec.loader.exec_module(example)
    windows = torch.randint(65, (32, 12, 65), generator=torch.Generator().manual_seed(0))
    return Problem("gpt", lambda: example.GPT(65, 64, 4, 4, 128), example.loss, list(windows))


def gpt_bf16() -> Problem:
    """The same under bf16 autocast."""
    return gpt()._replace(name="gpt-bf16", bf16=True, rtol=2e-2)


def gpt_accumulate() -> Problem:
    """The same batches of 12 windows, in 4 micro-batches of 3."""
    return gpt()._replace(name="gpt-accumulate", micro=4)


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "mlp": mlp,
    "narrow": narrow,
    "many": many,
    "logged": logged,
    "cnn": cnn,
    "gpt": gpt,
    "gpt-bf16": gpt_bf16,
    "gpt-accumulate": gpt_accumulate,
}


def wide(width: int = 2048) -> Problem:
    """Twelve layers of 2048 x 2048, 50 million parameters, batches of 16: for memory."""

    def build() -> nn.Module:
        return nn.Sequential(
            *(layer for _ in range(12) for layer in (nn.Linear(width, width), nn.ReLU()))
        )

    batch = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    return Problem("wide", build, _reconstruct, [batch])


def little() -> Problem:
    """A small `wide`: it loads what a library loads before memory is measured."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())

    return Problem("little", build, _reconstruct, [torch.randn(16, 256)])


class Residual(nn.Module):
    """``x + layer(x) / 32``, a thousand times."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(1000))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x) / 32
        return x


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def _reconstruct(model: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch), batch)


def labelled(examples: int, *shape: int, classes: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Noise, with labels by chance."""
    g = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(examples, *shape, generator=g),
            torch.randint(classes, (examples,), generator=g),
        )
        for _ in range(32)
    ]
