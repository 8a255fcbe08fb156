"""Cross-validation, and the folds together as one model: handwritten digits in five folds.

Each fold is a run of its own, with a folder of its own. Kill it and start it again: finished folds
are loaded, and the one that was cut goes on to the same bits::

    python examples/kfold.py

Each digit is held out by one fold: how many of them are recognized is what cross-validation tells
of the recipe. Those who have trained five networks may as well ask all of them: ``kfold.png`` shows
what that gains on digits that none has seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from digits import loss, network  # the file beside this one
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fnloop as fl

FEW = 400
"""Digits that the folds share, few enough to make it hard; none sees the others."""


class Scores(NamedTuple):
    """Fractions of digits that are recognized.

    Attributes:
        held_out: By each fold, of those that it held out.
        unseen: By each fold, of those that none has seen.
        together: Of the same, by the mean of all folds' probabilities.
    """

    held_out: list[float]
    unseen: list[float]
    together: float


def everything() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits in an order of chance, and what they are."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(labels)[order]


def train(images: Tensor, digits: Tensor, folder: Path, epochs: int, seed: int) -> fl.State:
    """One fold; goes on if it was stopped, and does nothing if it is finished."""
    data = fl.Batches((images, digits), 32)
    rate = fl.schedules.cosine(3e-3, steps=epochs * len(data), warmup=len(data))
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(rate)))
    state, _ = fl.fit(
        step,
        step.init(lambda: network(dropout=0.2), seed=seed),
        data,
        epochs=epochs,
        callbacks=[fl.checkpoint(folder, keep=1, every=1)],
        resume=folder,
        progress=False,
    )
    return state


def together(states: list[fl.State], images: Tensor) -> Tensor:
    """The mean of the folds' probabilities: float[images, 10]. All folds are one call."""
    net: nn.Module = fl.to_module(states[0]).eval()
    each = [{**state.params, **state.buffers} for state in states]
    stacked = fl.tree_map(lambda *tensors: torch.stack(tensors), *each)
    one = lambda tensors: torch.func.functional_call(net, tensors, (images,)).softmax(1)  # noqa: E731
    with torch.no_grad():
        return torch.func.vmap(one)(stacked).mean(0)


def cross_validate(folder: Path, k: int = 5, epochs: int = 30) -> Scores:
    """Train `k` folds; their scores, which ``kfold.png`` in the folder shows."""
    torch.set_num_threads(1)  # threads would only get into each other's way in so small a network
    images, digits = everything()
    folds, unseen = fl.data.folds(FEW, k, labels=digits[:FEW]), torch.arange(FEW, len(images))
    states = [
        train(images[rows], digits[rows], folder / f"fold-{i}", epochs, seed=i)
        for i, (rows, _) in enumerate(folds)
    ]

    def score(state: fl.State, rows: Tensor) -> float:
        return fl.evaluate(loss, state, (images[rows], digits[rows]))["accuracy"]

    right = together(states, images[unseen]).argmax(1) == digits[unseen]
    scores = Scores(
        held_out=[score(state, rows) for state, (_, rows) in zip(states, folds, strict=True)],
        unseen=[score(state, unseen) for state in states],
        together=right.float().mean().item(),
    )
    draw(scores, folder / "kfold.png")
    return scores


def draw(scores: Scores, path: Path) -> None:
    """Two points for each fold, and a line for all of them together."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    folds = range(len(scores.held_out))
    beside = [fold + 0.08 for fold in folds]
    axes.plot(beside, scores.held_out, "o", color="C1", label="a fold, on what it held out")
    axes.plot(folds, scores.unseen, "o", color="C0", label="a fold, on unseen digits")
    axes.axhline(scores.together, color="C0", label="all folds together, on unseen digits")
    axes.set(xlabel="fold", ylabel="accuracy", title=f"Digits in {len(folds)} folds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    place = Path("runs/kfold")
    found = cross_validate(place)
    for i, (held_out, unseen) in enumerate(zip(found.held_out, found.unseen, strict=True)):
        print(f"fold {i}: {held_out:.4f} held out, {unseen:.4f} unseen")
    mean = sum(found.held_out) / len(found.held_out)
    print(f"cross-validated {mean:.4f}; together {found.together:.4f} unseen; {place}/kfold.png")
