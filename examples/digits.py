"""Handwritten digits: a whole training run on one page.

Train it, and look at it afterwards::

    fnloop fit examples/digits.py
    fnloop fit examples/digits.py --lr 0.01 --folder runs/digits-fast
    fnloop test runs/digits
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.app import main

torch.set_num_threads(1)  # threads would only get into each other's way in a network this small


def network(dropout: float) -> nn.Module:
    """From images of 8 x 8 pixels to ten scores."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(64, 10),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy, which is trained; and accuracy, which is only reported."""
    images, digits = batch
    scores = model(images)
    accuracy = (scores.argmax(1) == digits).float().mean()
    return F.cross_entropy(scores, digits), {"accuracy": accuracy}


def digits(batch_size: int) -> fl.Data:
    """scikit-learn's 1797 digits, in three parts that are the same each time."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, validate, test = order.split([1077, 360, 360])
    return fl.Data(
        train=fl.Batches((images[train], targets[train]), batch_size),
        validate=fl.Batches((images[validate], targets[validate]), 360, shuffle=False),
        test=fl.Batches((images[test], targets[test]), 360, shuffle=False),
        predict=fl.Batches(images[test], 360, shuffle=False),
    )


def recipe(
    lr: float = 3e-3,
    batch_size: int = 32,
    dropout: float = 0.2,
    epochs: int = 30,
    patience: int = 5,
    folder: str = "runs/digits",
    seed: int = 0,
) -> fl.Recipe:
    """A small convolutional network, trained with AdamW until the validation loss stops improving.

    Args:
        lr: Highest learning rate; it rises over one epoch, and then falls along a cosine.
        batch_size: Examples in a batch.
        dropout: Fraction of the hidden units that are dropped in training.
        epochs: At most so many.
        patience: Epochs without improvement after which training stops.
        folder: Where the run goes: checkpoints, curves, its configuration.
        seed: Of the initial weights and of dropout.
    """
    data = digits(batch_size)
    an_epoch = len(data.train)
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(
            fl.optim.chain(
                fl.optim.clip_by_norm(1.0),
                fl.optim.adamw(fl.schedules.cosine(lr, steps=epochs * an_epoch, warmup=an_epoch)),
            )
        ),
        fl.ema(0.98),
    )
    return fl.Recipe(
        step=step,
        model=lambda: network(dropout),
        data=data,
        epochs=epochs,
        params="ema",  # the averaged weights are evaluated
        seed=seed,
        folder=folder,
        callbacks=[
            fl.every(1, fl.validate(loss, data, params="ema"), unit="epoch"),
            fl.early_stopping("val/loss", patience=patience),
            fl.checkpoint(folder, monitor="val/loss"),
            fl.track(fl.trackers.Aim(folder, experiment="digits")),
            fl.progress(names=["loss", "val/loss", "accuracy", "val/accuracy"]),
        ],
    )


if __name__ == "__main__":
    sys.exit(main(["fit", __file__, *sys.argv[1:]]))
