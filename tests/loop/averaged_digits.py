"""Averages of a model with BatchNorm on digits, evaluated with four kinds of running statistics.

``python -m tests.loop.averaged_digits`` prints the table of docs/how-to/averages.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import fnloop as fl

EPOCHS, BATCHES = 5, 23
AVERAGES = {
    "`fl.ema(0.99)`": 0.99,
    "`fl.ema(fl.schedules.uniform(start=46))`": fl.schedules.uniform(start=2 * BATCHES),
}
KINDS = ("live", "averaged", "own", "torch's")


class Result(NamedTuple):
    """Of one average with one kind of running statistics."""

    loss: float
    accuracy: float


def digits() -> fl.Data:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, train = order[:360], order[360:]
    return fl.Data(
        train=fl.Batches((x[train], y[train]), 64),
        validate=fl.Batches((x[held_out], y[held_out]), 360, shuffle=False),
    )


def network() -> nn.Module:
    layers = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def loss(model, batch):
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), {"accuracy": fl.metrics.accuracy(logits, batch[1])}


def run(decay, seed: int) -> dict[str, Result]:
    """Train, and evaluate the average with each kind of statistics."""
    data, average = digits(), fl.ema(decay)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), average)
    state = first = step.init(network, seed=seed)
    averaged = {name: b for name, b in first.buffers.items() if "running" in name}
    for state, _ in fl.run(step, first, data, epochs=EPOCHS):
        count = int(state.step) - 1
        share = 1 - (decay(count) if callable(decay) else decay)
        # As torch's AveragedModel(use_buffers=True) does.
        averaged = {n: b.lerp(state.buffers[n], float(share)) for n, b in averaged.items()}
    mixed = state.replace(buffers={**state.buffers, **averaged})
    fresh = fl.refresh_batchnorm(loss, state, data, params="ema")
    module = fl.to_module(fresh, params="ema")
    torch.optim.swa_utils.update_bn(data.train, module)
    theirs = fl.grad(loss).init(module)

    def result(state, **options) -> Result:
        found = fl.evaluate(loss, state, data.validate, **options)
        return Result(found["loss"], found["accuracy"])

    return {
        "live": result(state, params="ema", statistics="live"),
        "averaged": result(mixed, params="ema", statistics="live"),
        "own": Result(**fl.evaluate(loss, state, data, params="ema")),
        "torch's": result(theirs),
    }


def main() -> None:
    print("| average | run | " + " | ".join(KINDS) + " |\n| --- | --- |" + " --- |" * len(KINDS))
    for text, decay in AVERAGES.items():
        for seed in range(6):
            found = run(decay, seed)
            cells = [f"{found[kind].accuracy:.3f} ({found[kind].loss:.3f})" for kind in KINDS]
            print(f"| {text} | {seed} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
