"""The two problems that schemes are drawn on in the gallery, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fnloop as fl


class Problem(NamedTuple):
    """What a scheme is drawn on.

    Attributes:
        title: Of the panel.
        network: Makes the model.
        loss: The loss.
        half, other: Two losses whose sum it is, or nearly.
        optimizer: One that suits it.
        lr: A learning rate without momentum that suits it.
        train, test: Data.
        epochs: How long.
        every: Steps between two points of a curve.
        ticks: Losses that are written at the axis.
    """

    title: str
    network: Callable[[], nn.Module]
    loss: Callable[..., Any]
    half: Callable[..., Any]
    other: Callable[..., Any]
    optimizer: fl.optim.Optimizer
    lr: float
    train: fl.Batches
    test: fl.Batches
    epochs: int
    every: int
    ticks: Sequence[float]


class Bowl(nn.Module):
    """A point, one away from the minimum in each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(50))


HEIGHTS = torch.logspace(-3, 0, 50)


def height(model: Bowl, batch: Tensor, which: slice = slice(None)) -> Tensor:
    """The mean over examples of how high it is above the minimum, which is at each example."""
    return (HEIGHTS * (model.at - batch).square())[:, which].sum(1).mean() / 2


def digits() -> Problem:
    """A perceptron that reads scikit-learn's digits; and a penalty on its parameters."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def penalty(model: nn.Module, batch: Any) -> Tensor:
        return 0.001 * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))

    return Problem(
        title="digits: test loss",
        network=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        loss=loss,
        half=loss,
        other=penalty,
        optimizer=fl.optim.sgd(0.05, momentum=0.9),
        lr=0.2,
        train=fl.Batches((x[:1000], y[:1000]), 50),
        test=fl.Batches((x[1000:], y[1000:]), 1000, shuffle=False),
        epochs=15,
        every=10,
        ticks=(0.2, 0.5, 1, 2),
    )


def quadratic() -> Problem:
    """A bowl that is a thousand times steeper in one direction than in another."""
    origin = torch.zeros(8, 50)
    return Problem(
        title="quadratic, condition 1000: loss",
        network=Bowl,
        loss=height,
        half=lambda model, batch: height(model, batch, slice(0, 25)),
        other=lambda model, batch: height(model, batch, slice(25, 50)),
        optimizer=fl.optim.sgd(0.5, momentum=0.9),
        lr=0.5,
        train=fl.Batches(origin, 8),
        test=fl.Batches(origin, 8),
        epochs=400,
        every=5,
        ticks=(1, 1e-2, 1e-4),
    )


PROBLEMS = (digits, quadratic)


def curve(code: str, problem: Problem, params: str | None = None) -> tuple[list[int], list[float]]:
    """Steps, and the loss after each of them."""
    step = eval(code, {"fl": fl, **problem._asdict()})
    state = step.init(problem.network, seed=0)
    look = fl.validate(problem.loss, problem.test, params=params, name="test")
    _, history = fl.fit(
        step,
        state,
        problem.train,
        epochs=problem.epochs,
        callbacks=[fl.every(problem.every, look)],
        progress=False,
    )
    return history.steps("test/loss"), history["test/loss"]
