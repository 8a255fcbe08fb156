"""A learned schedule: forty steps on digits, whose learning rates are found by their derivative.

The validation loss after training is a differentiable function of the schedule. A few steps of Adam
along that derivative are compared with sweeps of 64 peaks, for schedules of a known form::

    python learned_schedule.py

It prints the test losses of networks that neither has seen, and what each has cost;
``learned_schedule.png`` shows the schedules.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import fnloop as fl

torch.set_num_threads(1)

STEPS, BATCH = 40, 64
PEAKS = torch.logspace(-2, 0.7, 64)
ROUNDS = ((0, 1, 2, 3), (4, 5, 6, 7))
"""Networks that a schedule is learned on by turns, each with an order of the data of its own."""

SWEPT = 16
"""Networks on which each peak of a sweep is tried: so many that both cost the same."""

Batch = tuple[Tensor, Tensor]


@fl.tree
class Knots(fl.schedules.Schedule):
    """A line through points, of the logarithm of the learning rate: float32[n]."""

    logs: Any
    steps: int

    def compute(self, step: Any) -> Any:
        place = torch.as_tensor(step) * (len(self.logs) - 1) / (self.steps - 1)
        shares = (1 - (place - torch.arange(len(self.logs))).abs()).clamp(min=0)
        return (shares.to(self.logs.dtype) * self.logs).sum().exp()


class Learned(nn.Module):
    """What is learned: 11 points, a constant learning rate of 0.3 to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.full((11,), 0.3).log())

    def forward(self) -> Knots:
        return Knots(self.logs, STEPS)


FORMS: dict[str, Callable[[Any], fl.schedules.Schedule]] = {
    "linear": lambda peak: fl.schedules.linear(peak, 0.0, STEPS),
    "cosine": lambda peak: fl.schedules.cosine(peak, STEPS),
}


@functools.cache
def digits() -> tuple[Batch, Batch, Batch]:
    """scikit-learn's digits: to train, to validate, to test."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = [(x[i], y[i]) for i in order.split([1077, 360, 360])]
    return parts[0], parts[1], parts[2]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@functools.cache
def beginning(seed: int) -> tuple[fl.State, list[Batch]]:
    """A new network, and the batches of its training."""
    data = fl.Batches(digits()[0], BATCH, seed=seed)
    cursor, batches = torch.zeros(3, dtype=torch.int64), []
    for _ in range(STEPS):
        cursor, batch = data.at(cursor)
        batches.append(batch)
    return fl.grad(loss).init(network, seed=seed), batches


def after(schedule: fl.schedules.Schedule, seed: int, part: int = 1) -> Tensor:
    """The loss after training, on one of the parts of the data."""
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(schedule, momentum=0.9)))
    state, batches = beginning(seed)
    trained = fl.unroll(step, step.init(state), batches)
    return trained.apply(lambda model: loss(model, digits()[part]))


def outer(learned: Learned, seeds: Tensor) -> Tensor:
    """The loss of what is learned: the mean validation loss after training."""
    return torch.stack([after(learned(), seed) for seed in seeds.tolist()]).mean()


def learn(iterations: int) -> tuple[Knots, list[float]]:
    """The schedule after some steps of Adam, and the losses on the way."""
    rate = fl.schedules.cosine(0.3, iterations)
    adam = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adam(rate, b1=0.8, b2=0.95))
    step = fl.pipe(outer, fl.grad, fl.update(adam))
    rounds = list(torch.tensor(ROUNDS))
    state, history = fl.fit(step, step.init(Learned), rounds, steps=iterations)
    return Knots(state.params["logs"], STEPS), history["loss"]


@torch.no_grad()
def sweep(form: Callable[[Any], fl.schedules.Schedule]) -> Tensor:
    """The mean validation loss for each peak: 64 runs in one, for each network."""
    for seed in range(SWEPT):
        beginning(seed)  # draws, which must be before the vmap
    each = [torch.func.vmap(lambda peak, s=s: after(form(peak), s))(PEAKS) for s in range(SWEPT)]
    return torch.stack(each).mean(0).nan_to_num(torch.inf)


@torch.no_grad()
def tested(schedule: fl.schedules.Schedule, networks: int) -> Tensor:
    """Test losses of new networks."""
    return torch.stack([after(schedule, 1000 + i, part=2) for i in range(networks)])


def plot(
    path: Path, schedules: dict[str, Any], losses: dict[str, Tensor], sweeps: dict[str, Tensor]
) -> None:
    """Draw the schedules, and the sweeps beside what was learned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, schedule in schedules.items():
        label = f"{name}: test loss {losses[name].mean():.3f}"
        left.plot([float(schedule(i)) for i in range(STEPS)], label=label)
    left.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    left.legend()
    for name, found in sweeps.items():
        right.plot(PEAKS, found, label=f"{name}, by its peak")
    level = float(torch.stack([after(schedules["learned"], s) for s in range(SWEPT)]).mean())
    right.axhline(level, color="C2", linestyle="--", label="learned")
    right.set(xscale="log", xlabel="peak", ylabel="validation loss", ylim=(0.1, 0.6))
    right.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--networks", type=int, default=64, help="new ones, for the test")
    parser.add_argument("--picture", type=Path, default=Path("learned_schedule.png"))
    given = parser.parse_args()
    schedules: dict[str, Any] = {}
    sweeps: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for name, form in FORMS.items():
        start = time.process_time()
        sweeps[name] = sweep(form)
        schedules[name] = form(float(PEAKS[sweeps[name].argmin()]))
        seconds[name] = time.process_time() - start
    start = time.process_time()
    schedules["learned"], _ = learn(given.iterations)
    seconds["learned"] = time.process_time() - start
    losses = {name: tested(each, given.networks) for name, each in schedules.items()}
    for name, own in losses.items():
        more = losses[name] - losses["learned"]
        error = float(more.std() / len(more) ** 0.5)
        print(
            f"{name:8} test loss {own.mean():.4f}, {more.mean():+.4f} +- {error:.4f} to learned; "
            f"found in {seconds[name]:.1f} s"
        )
    plot(given.picture, schedules, losses, sweeps)


if __name__ == "__main__":
    main()
