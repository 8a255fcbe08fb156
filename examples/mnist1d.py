"""MNIST-1D: four models, ten seeds each, beside the published table.

All of it, in one command, and what comes out in a table and a picture::

    python examples/mnist1d.py
    python examples/mnist1d.py --models cnn gru --seeds 5 --steps 2000

The digits are drawn as lines of 40 numbers (Greydanus and Kobak, "Scaling down deep learning",
2020, https://arxiv.org/abs/2011.14439), few enough that a model is trained in seconds. They are
made here, by the published procedure and seed: padded, scaled, moved around, sheared, with noise.
Training is that of the authors: Adam at 0.01, 6,000 batches of 100, in the order of the data.

The seeds of a model are one run, ``fl.ensemble``: each batch trains all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import fnloop as fl

Array = NDArray[np.float64]

SHAPES = """
5 6 6.5 6.75 7 7 7 7 6.75 6.5 6 5
5 3 3 3.4 3.8 4.2 4.6 5 5.4 5.8 5 5
5 6 6.5 6.5 6 5.25 4.75 4 3.5 3.5 4 5
5 6 6.5 6.5 6 5 5 6 6.5 6.5 6 5
5 4.4 3.8 3.2 2.6 2.6 5 5 5 5 5 5
5 3 3 3 3 5 6 6.5 6.5 6 4.5 5
5 4 3.5 3.25 3 3 3 3 3.25 3.5 4 5
5 7 7 6.6 6.2 5.8 5.4 5 4.6 4.2 5 5
5 4 3.5 3.5 4 5 5 4 3.5 3.5 4 5
5 4 3.5 3.5 4 5 5 5 5 4.7 4.3 5
"""
"""The ten digits, as a pen sees them that goes from the top to the bottom: a row for each."""

LENGTH, LONG = 40, 72
"""Of an example; and of what it is cut down from."""


def shapes() -> Array:
    """float64[10, 12]: the digits, each of one deviation over six, and from zero on."""
    x = np.array([[float(each) for each in row.split()] for row in SHAPES.split("\n") if row])
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return (x - x[:, :1]) / 6


def resampled(x: Array, length: int) -> Array:
    """`x` at other points, between those that it has, along a straight line."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(x)), x)


def drawn(x: Array, random: np.random.RandomState) -> Array:
    """float64[LENGTH]: a digit of its own. The order of what is drawn is the published one."""
    from scipy.ndimage import gaussian_filter

    padding = 36 + int(random.rand() * 25)
    x = np.concatenate([x + 1e-8, np.zeros(padding)])  # so that zero is the padding alone
    x = resampled(x, LONG) * (1 + 0.4 * (random.rand() - 0.5))
    x = np.roll(x, random.choice(48))
    noise = gaussian_filter(0.25 * random.randn(LONG), 2)
    x = np.where(x != 0, x, noise)
    x = x + 0.02 * random.randn(LONG)
    x = x - 0.75 * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, LONG)
    return resampled(x, LENGTH)


class Mnist1d(NamedTuple):
    """Examples, float32[n, 40], and digits, int64[n]: 4,000 to train with, 1,000 to test with."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def mnist1d(examples: int = 5000, seed: int = 42) -> Mnist1d:
    """The data set; by default the published one."""
    random = np.random.RandomState(seed)
    digits = np.repeat(np.arange(10), examples // 10)
    all_shapes = shapes()
    x = np.stack([drawn(all_shapes[digit], random) for digit in digits])
    order = random.permutation(len(x))
    x, digits = x[order], digits[order]
    inputs = torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32)
    targets, cut = torch.tensor(digits), len(x) * 4 // 5
    return Mnist1d((inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:]))


class Mlp(nn.Module):
    """Three layers, the second added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(LENGTH, 100), nn.Linear(100, 100)
        self.third = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.third(x + self.second(x).relu())


def cnn() -> nn.Module:
    """Three convolutions, each of which halves the length."""
    return nn.Sequential(
        nn.Unflatten(1, (1, LENGTH)),
        nn.Conv1d(1, 25, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(25, 25, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(25, 25, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(125, 10),
    )


class Gru(nn.Module):
    """Six units in each direction; all that they were goes to the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 6, batch_first=True, bidirectional=True)
        self.last = nn.Linear(LENGTH * 12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gru(x[..., None])[0].flatten(1))


class Published(NamedTuple):
    """A model, what is known of it, and how its seeds are best computed here.

    Attributes:
        network: Makes it.
        table: Accuracy in percent in the paper's table.
        notebook: The same, as the authors' notebook prints it after 6,000 steps.
        mode: As in `fl.ensemble`. Convolutions of several members at once are grouped ones, which
            on a CPU are slower than one after the other.
    """

    network: Callable[[], nn.Module]
    table: float
    notebook: float
    mode: Literal["vmap", "loop"] = "vmap"


MODELS = {
    "logistic": Published(lambda: nn.Linear(LENGTH, 10), 32, 31.5),
    "mlp": Published(Mlp, 68, 65.1),
    "cnn": Published(cnn, 94, 92.3, "loop"),
    "gru": Published(Gru, 91, 89.1),
}


class Trained(NamedTuple):
    """What became of one model.

    Attributes:
        accuracy: float[seeds]: in percent, on the test data.
        curves: (steps, accuracies) for each seed.
        seconds: How long it took, with compilation.
    """

    accuracy: list[float]
    curves: list[tuple[list[float], list[float]]]
    seconds: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracy)

    @property
    def spread(self) -> float:
        """Of the seeds: their standard deviation."""
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else 0.0


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy, and the accuracy."""
    x, digits = batch
    scores = model(x)
    accuracy = (scores.argmax(1) == digits).float().mean()
    return F.cross_entropy(scores, digits), {"accuracy": accuracy}


def train(model: Published, data: Mnist1d, seeds: int = 10, steps: int = 6000) -> Trained:
    """Train a model from several seeds in one run."""
    started = time.perf_counter()
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(1e-2)))
    many = fl.ensemble(step, seeds, mode=model.mode)
    test = fl.Batches(data.test, len(data.test[1]), shuffle=False)
    state, history = fl.fit(
        fl.compile(many, donate=True),
        many.init(model.network, seed=0),
        fl.Batches(data.train, 100, shuffle=False),
        steps=steps,
        callbacks=[fl.every(max(1, steps // 60), fl.validate(loss, test, name="test"))],
        progress=False,
    )
    found = fl.evaluate(loss, state, test)
    names = [name for name in found if name.startswith("accuracy")]
    return Trained(
        [100 * found[name] for name in names],
        [(history.steps(f"test/{name}"), history[f"test/{name}"]) for name in names],
        time.perf_counter() - started,
    )


HEAD = ["model", "parameters", "accuracy, %", "table", "notebook", "minutes"]


def row(name: str, trained: Trained) -> list[str]:
    """A model's line of the table."""
    model = MODELS[name]
    size = sum(p.numel() for p in model.network().parameters())
    found = f"{trained.mean:.1f} ± {trained.spread:.1f}"
    minutes = f"{trained.seconds / 60:.1f}"
    return [name, f"{size:,}", found, f"{model.table:.0f}", f"{model.notebook:.1f}", minutes]


def draw(found: dict[str, Trained], path: Path) -> None:
    """Accuracies against steps: a line for each seed, and the published number beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(MODELS, ("#666666", "#2f6fb0", "#e07b39", "#4a9d6e"), strict=True))
    for name, trained in found.items():
        for i, (steps, accuracy) in enumerate(trained.curves):
            label = f"{name}: {trained.mean:.1f} ± {trained.spread:.1f}" if i == 0 else None
            line = {"color": colors[name], "linewidth": 0.8, "alpha": 0.55}
            axes.plot(steps, [100 * each for each in accuracy], label=label, **line)
        published = {"color": colors[name], "linestyle": (0, (4, 3)), "linewidth": 1.4}
        axes.axhline(MODELS[name].notebook, **published)
    axes.plot([], [], "--", color="black", label="authors' notebook")
    axes.set(xlabel="steps", ylabel="accuracy on the test data, %", ylim=(20, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.36), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Trained]:
    """Train all models; print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--plot", type=Path, default=Path("runs/mnist1d.png"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads would only get into each other's way in models this small
    data, found = mnist1d(), {}
    widths = [10, 10, 12, 6, 8, 8]
    print("  ".join(f"{cell:>{width}}" for cell, width in zip(HEAD, widths, strict=True)))
    for name in given.models:
        found[name] = train(MODELS[name], data, given.seeds, given.steps)
        cells = zip(row(name, found[name]), widths, strict=True)
        print("  ".join(f"{cell:>{width}}" for cell, width in cells), flush=True)
    draw(found, given.plot)
    return found


if __name__ == "__main__":
    main()
