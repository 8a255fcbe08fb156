"""Finetuning: a ConvNet that knows clean digits learns noisy ones from five examples of each.

It is trained on half of scikit-learn's digits, gets a new head, and thaws from the head downwards::

    python examples/finetune.py
    python examples/finetune.py    # after Ctrl-C: it goes on with the same bits

What is frozen is not computed backward. BatchNorms stay frozen to the end, and keep every bit.
``finetune.png`` compares with training all layers at once, and with training from scratch.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fnloop as fl

torch.set_num_threads(1)  # threads would only get into each other's way in networks this small

PARTS = ("head", "top", "middle", "stem")
"""The parts of the network, from the last to the first."""

NORMS = "*.norm.*"

PHASES = {
    0: ["top", "middle", "stem"],
    10: ["middle", "stem", NORMS],
    20: ["stem", NORMS],
    30: NORMS,
}
"""What is frozen, by the epoch from which on it is."""


class Net(nn.Module):
    """Three blocks of convolution and BatchNorm, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16)
        self.middle = block(16, 32)
        self.top = block(32, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.top(self.middle(self.stem(images)))
        return self.head(seen.mean((2, 3)))


def block(channels: int, more: int) -> nn.Sequential:
    """Finds patterns, and halves the picture."""
    layers = {
        "conv": nn.Conv2d(channels, more, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(more),
        "relu": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
    }
    return nn.Sequential(OrderedDict(layers))


def loss(model: Net, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, fl.Mean]]:
    """Cross-entropy."""
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


def clean() -> fl.Data:
    """The first half of the digits; a fifth of it to validate."""
    x, y = (each[:900] for each in digits())
    return fl.Data(
        train=fl.Batches((x[180:], y[180:]), 32),
        validate=fl.Batches((x[:180], y[:180]), 180, shuffle=False),
    )


def noisy(each: int = 5) -> fl.Data:
    """The second half under noise: so many of each digit to train, all others to validate."""
    x, y = (each[900:] for each in digits())
    x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    few = torch.cat([(y == digit).nonzero()[:each, 0] for digit in range(10)])
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[few] = False
    return fl.Data(
        train=fl.Batches((x[few], y[few]), 25),
        validate=fl.Batches((x[rest], y[rest]), 1000, shuffle=False),
    )


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits of 8 x 8 pixels from 0 to 1: float32[n,1,8,8], int64[n]."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


def known(epochs: int, smoke: bool) -> Net:
    """A network that has learned clean digits."""
    step, data = plain(), clean()
    state = step.init(Net, seed=0)
    state, _ = fl.fit(step, state, data, epochs=epochs, smoke=smoke)
    print(f"Of clean digits it knows {fl.evaluate(loss, state, data.validate)['accuracy']:.1%}.")
    return fl.to_module(state)


def plain() -> fl.base.StepStage:
    """A step that trains everything alike."""
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(3e-3)))


def with_new_head(model: Net) -> Net:
    """The network with a head that knows nothing yet."""
    torch.manual_seed(1)
    model.head = nn.Linear(64, 10)
    return model


def finetuning(phases: dict[int, str | list[str]] | None = None) -> fl.base.StepStage:
    """A step whose learning rates fall by half with each part downwards.

    Each part has an optimizer of its own, which counts its steps from when it thaws.
    """
    rates = {part: 3e-3 * 0.5**depth for depth, part in enumerate(PARTS)}
    optimizer = fl.optim.by_label(
        {part: fl.optim.adamw(rate) for part, rate in rates.items()},
        {part: part for part in PARTS},
    )
    frozen = fl.schedules.by_epoch(phases) if phases else ()
    return fl.pipe(loss, fl.grad(frozen=frozen), fl.update(optimizer))


def learn(
    step: fl.base.StepStage,
    model: Net,
    data: fl.Data,
    folder: Path,
    epochs: int,
    smoke: bool = False,
) -> tuple[fl.State, fl.State, list[float]]:
    """Train; return the first and the last state, and the accuracy after each epoch."""
    start = step.init(model, seed=2)
    callbacks = [
        fl.every(1, fl.validate(loss, data.validate), unit="epoch"),
        fl.checkpoint(folder, keep=1, every=5),
    ]
    state, history = fl.fit(
        step,
        start,
        data,
        epochs=epochs,
        callbacks=callbacks,
        resume=None if smoke else folder,
        smoke=smoke,
    )
    return start, state, history["val/accuracy"]


def norms_of(state: fl.State) -> fl.Tensors:
    """Weights, biases and statistics of all BatchNorms."""
    tensors = {**state.params, **state.buffers}
    return fl.Tensors({name: t for name, t in tensors.items() if ".norm." in name})


def plot(path: Path, curves: dict[str, list[float]]) -> None:
    """Draw accuracy over epochs, with the epochs at which a part thaws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, accuracies in curves.items():
        axes.plot(range(1, len(accuracies) + 1), accuracies, label=name)
    last = max(map(len, curves.values()))
    for start, part in zip(PHASES, PARTS, strict=False):
        if 0 < start < last:
            axes.axvline(start, color="0.8", zorder=0)
            axes.annotate(f"{part} thaws", (start, 0.81), (3, 0), textcoords="offset points",
                          color="0.4", annotation_clip=False)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="accuracy on noisy digits", ylim=(0.0, 0.8))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def run(folder: Path, epochs: int = 40, first: int = 12, smoke: bool = False) -> dict[str, float]:
    """Train on clean digits, then on a few noisy ones in three ways.

    Args:
        folder: Of the runs and the plot.
        epochs: Passes over the few digits.
        first: Passes over those before.
        smoke: Go through all of it on two batches, and leave no file.
    """
    data = noisy()
    before, new = known(first, smoke), with_new_head(Net())
    gradually = finetuning(PHASES)
    ways = {
        "gradually": (gradually, with_new_head(before)),
        "all at once": (finetuning(), with_new_head(before)),
        "from scratch": (plain(), new),
    }
    curves = dict[str, list[float]]()
    for name, (step, model) in ways.items():
        place = folder / name.replace(" ", "-")
        start, state, curves[name] = learn(step, model, data, place, epochs, smoke)
        if step is gradually:
            print(f"All BatchNorms kept their bits: {norms_of(state) == norms_of(start)}.")
    for name, accuracies in curves.items():
        print(f"{name}: {accuracies[-1]:.1%}")
    if not smoke:
        plot(folder / "finetune.png", curves)
    return {name: accuracies[-1] for name, accuracies in curves.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="two batches of all, and no files")
    given = parser.parse_args()
    run(given.folder, given.epochs, smoke=given.smoke)
