"""Fashion-MNIST, all of it: a small convolutional network, beside the published table.

The pictures are Debian's, or those of https://github.com/zalandoresearch/fashion-mnist::

    sudo apt-get install dataset-fashion-mnist
    python examples/fashion_mnist.py
    python examples/fashion_mnist.py --folder data/fashion --epochs 1

``examples/fashion_mnist_lightning.py`` is the same training in PyTorch Lightning: the same
weights, batches and losses.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl

FOLDER = Path("/usr/share/datasets/fashion-mnist")
EPOCHS, BATCH, PEAK = 5, 128, 2e-3


def read(path: Path) -> Tensor:
    """An IDX file of bytes (http://yann.lecun.com/exdb/mnist), uint8 of any shape."""
    if not path.exists():
        raise SystemExit(
            f"There is no {path}. Debian and Ubuntu have the files in a package (sudo apt-get "
            "install dataset-fashion-mnist); else download them from "
            "https://github.com/zalandoresearch/fashion-mnist and name their folder: --folder."
        )
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, math.prod(shape), offset=4 + 4 * dimensions)
    return torch.tensor(values.reshape(shape))


def pictures(folder: Path, part: str) -> TensorDataset:
    """Pictures, float32[n, 1, 28, 28] in 0 to 1, and classes, int64[n]; `part` is train or t10k."""
    images = read(folder / f"{part}-images-idx3-ubyte.gz")
    classes = read(folder / f"{part}-labels-idx1-ubyte.gz")
    return TensorDataset(images.unsqueeze(1) / 255, classes.long())


def shuffled(data: TensorDataset, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches of an epoch, in an order of its own, however often it is read."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
    return DataLoader(data, batch_sampler=[part.tolist() for part in order.split(BATCH)])


def network() -> nn.Module:
    """Two convolutions, each with pooling: 20,490 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    x, y = batch
    scores = model(x)
    return F.cross_entropy(scores, y), {"accuracy": (scores.argmax(1) == y).float().mean()}


def trained(folder: Path, epochs: int = EPOCHS, seed: int = 0) -> tuple[fl.State, fl.History]:
    """Train, and test after each epoch."""
    train, test = pictures(folder, "train"), pictures(folder, "t10k")
    steps = epochs * math.ceil(len(train) / BATCH)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(fl.schedules.cosine(PEAK, steps=steps))))
    testing = fl.validate(loss, DataLoader(test, 1000), name="test")
    history = fl.History(every=math.ceil(len(train) / BATCH))  # a row for each epoch
    state, _ = fl.fit(
        step,
        step.init(network, seed=seed),
        lambda epoch: shuffled(train, epoch),
        epochs=epochs,
        callbacks=[fl.every(1, testing, unit="epoch"), history],
    )
    return state, history


def options_in(arguments: Sequence[str] | None, about: str) -> argparse.Namespace:
    """The folder and the epochs; `about` is the docstring of the script."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_in(arguments, __doc__)
    begun = time.process_time()
    _, history = trained(options.folder, options.epochs)
    rows = zip(history["loss"], history["test/loss"], history["test/accuracy"], strict=True)
    for epoch, (own, other, accuracy) in enumerate(rows, 1):
        print(f"epoch {epoch}: loss {own:.6f}, test {other:.6f}, accuracy {accuracy:.4f}")
    print(f"{time.process_time() - begun:.0f} s of CPU time")


if __name__ == "__main__":
    main()
