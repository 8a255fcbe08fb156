"""Two networks that play against each other: a GAN that draws handwritten digits.

Train it, and see in ``samples.png`` how its digits get better::

    fnloop fit examples/gan.py
    fnloop resume runs/gan        # after Ctrl-C: it goes on with the same bits

The discriminator learns to tell scikit-learn's digits from those that the generator makes of noise,
and the generator to be taken for real (Goodfellow et al., 2014). How far its digits are from real
ones is ``val/distance``: the maximum mean discrepancy (Gretton et al., 2012) to digits that neither
has seen, whose value for as many real ones is told at the start.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.app import main

torch.set_num_threads(1)  # threads would only get into each other's way in networks this small

NOISE = 16
"""Numbers that a digit is made of."""


class Players(nn.Module):
    """Both networks; each step trains those parameters that are its own, by their names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(NOISE, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, 64),
            nn.Sigmoid(),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(64, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(width, 1),
        )


def drawn(model: Players, count: int) -> Tensor:
    """Digits of the generator."""
    return model.generator(torch.randn(count, NOISE))


def d_loss(model: Players, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """How badly the discriminator tells real digits from drawn ones."""
    seen, made = model.discriminator(real), model.discriminator(drawn(model, len(real)))
    right = torch.cat([seen > 0, made < 0]).float().mean()
    return (F.softplus(-seen) + F.softplus(made)).mean(), {"accuracy": right}


def g_loss(model: Players, real: Tensor) -> Tensor:
    """How seldom the discriminator takes drawn digits for real."""
    return F.softplus(-model.discriminator(drawn(model, len(real)))).mean()


def distance(model: Players, real: Tensor) -> dict[str, Tensor]:
    """How far drawn digits are from real ones."""
    return {"distance": discrepancy(drawn(model, len(real)), real)}


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """The squared maximum mean discrepancy, by an unbiased estimate with Gaussian kernels."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b).square()
        return sum([torch.exp(-squares / scale) for scale in (2.0, 8.0, 32.0)])  # type: ignore[return-value]

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def digits(batch_size: int) -> fl.Data:
    """scikit-learn's 1797 digits of 8 x 8 pixels from 0 to 1; 360 are kept for the end."""
    pixels, _ = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, train = images[order[:360]], images[order[360:]]
    return fl.Data(
        train=fl.Batches(train, batch_size, drop_last=True),
        validate=fl.Batches(held_out, 360, shuffle=False),
    )


def samples(path: Path, noise: Tensor) -> fl.base.Effect:
    """An effect that draws the digits of the averaged generator, always of the same noise."""

    def draw(state: fl.State, metrics: Mapping[str, Any]) -> None:
        from matplotlib.figure import Figure

        generator = fl.to_module(state, params="generator/ema").generator.eval()
        with torch.no_grad():
            images = generator(noise).reshape(-1, 8, 8)
        figure = Figure(figsize=(6, 4), layout="constrained")
        for image, axes in zip(images, figure.subplots(4, 6).flat, strict=True):
            axes.imshow(1 - image.numpy(), cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
        figure.suptitle(f"after {int(state.step)} rounds")
        figure.savefig(path)

    return fl.effect(draw)


def recipe(
    epochs: int = 200,
    lr: float = 1e-3,
    every: int = 1,
    batch_size: int = 64,
    width: int = 128,
    folder: Path = Path("runs/gan"),
    seed: int = 0,
) -> fl.Recipe:
    """Train a GAN on digits.

    Args:
        epochs: Passes over the digits.
        lr: Learning rate of both players at first; it falls to zero with the last round.
        every: The generator has a turn in every so many rounds.
        batch_size: Digits in a batch.
        width: Of both networks.
        folder: Of the run: checkpoints, samples, curves.
        seed: Of the initial weights, the noise and the order of the digits.
    """
    data = digits(batch_size)
    rounds = epochs * len(data.train)

    def adam(steps: int) -> fl.optim.Optimizer:
        return fl.optim.adam(fl.schedules.linear(lr, 0.0, steps=steps), b1=0.5)

    step = fl.sequence(
        discriminator=fl.pipe(d_loss, fl.grad(only="discriminator"), fl.update(adam(rounds))),
        generator=fl.pipe(
            g_loss,
            fl.grad(only="generator"),
            fl.update(adam(-(-rounds // every))),
            fl.ema(0.99),
        ),
        every={"generator": every},
    )
    noise = torch.randn(24, NOISE, generator=torch.Generator().manual_seed(1))
    return fl.Recipe(
        step,
        model=lambda: Players(width),
        data=data,
        callbacks=[
            fl.every(5, fl.validate(distance, data.validate, params="generator/ema"), unit="epoch"),
            fl.every(5, samples(folder / "samples.png", noise), unit="epoch"),
            fl.checkpoint(folder, keep=1, every=5),
            fl.progress(names=["discriminator/loss", "generator/loss", "val/distance"]),
        ],
        metrics=distance,
        params="generator/ema",
        epochs=epochs,
        folder=folder,
        seed=seed,
    )


if __name__ == "__main__":
    sys.exit(main(["fit", __file__, *sys.argv[1:]]))
