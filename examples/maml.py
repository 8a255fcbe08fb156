"""MAML: parameters from which one step on ten points learns a sine (Finn et al., 2017, 5.1).

Train by MAML, by first-order MAML, and on all sines at once, and see in ``maml.png`` how well each
then learns a new sine from five points and from ten, beside the numbers of the paper::

    python examples/maml.py                    # a minute or two
    python examples/maml.py --iterations 5000  # less, and worse

Each task is a sine of its own amplitude and phase. The loss of a task is the error on other points
after a step on ten, and what is learned is where that step begins. So the loss holds a training
run, `fl.unroll`, and the pipeline that minimizes it is one like any other: it is compiled whole,
with the inner steps of 25 tasks and the derivative through them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fnloop as fl

TASKS, POINTS, INNER, RATE = 25, 10, 1, 0.001
Points = tuple[Tensor, Tensor]
Outer = Callable[[fl.Tensors, Points, Points], Tensor]

PAPER = {
    "MAML": {1: 0.67, 5: 0.38, 10: 0.35},
    "trained on all sines": {1: 2.41, 5: 2.23, 10: 2.19},
}
"""Errors after so many steps on five points: table 2 of https://arxiv.org/pdf/1703.03400v3."""


def network() -> nn.Module:
    """Initialized as in the authors' code, https://github.com/cbfinn/maml, which has `RATE` too."""
    model = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            nn.init.trunc_normal_(p, std=0.01, a=-0.02, b=0.02)
        else:
            nn.init.zeros_(p)
    return model


def sines(n: int, generator: torch.Generator) -> tuple[Points, Points]:
    """Points of `n` sines to learn from, and others to evaluate with: float32[n, POINTS, 1]."""
    amplitude = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=generator)
    phase = math.pi * torch.rand(n, 1, 1, generator=generator)
    x = 10 * torch.rand(n, 2 * POINTS, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return (x[:, :POINTS], y[:, :POINTS]), (x[:, POINTS:], y[:, POINTS:])


def endless(seed: int) -> Iterator[tuple[Points, Points]]:
    """Batches of tasks; none comes twice."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield sines(TASKS, generator)


def loss(model: nn.Module, batch: Points) -> Tensor:
    """The error on points of one sine, or of several."""
    x, y = batch
    return F.mse_loss(model(x), y)


def learning(rate: float) -> fl.base.StepStage:
    """The step that learns one sine."""
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(rate)))


inner = learning(RATE)
start = inner.init(network, seed=0)


def after(params: fl.Tensors, learn: Points, evaluate: Points) -> Tensor:
    """The outer loss of one task."""
    adapted = fl.unroll(inner, start.replace(params=params), [learn] * INNER)
    return adapted.apply(lambda model: loss(model, evaluate))


def first_order(params: fl.Tensors, learn: Points, evaluate: Points) -> Tensor:
    """The same value; its derivative is that of the loss at the adapted parameters."""
    adapted = fl.unroll(inner, start.replace(params=params), [learn] * INNER)
    moved = adapted.params.sub(params).detach()
    here = start.replace(params=params.add(moved))
    return here.apply(lambda model: loss(model, evaluate))


def at_once(params: fl.Tensors, learn: Points, evaluate: Points) -> Tensor:
    """The loss without any inner step: one network for all sines."""
    return start.replace(params=params).apply(lambda model: loss(model, learn))


def of_tasks(outer: Outer) -> Callable[[nn.Module, tuple[Points, Points]], Tensor]:
    """The loss of a batch of tasks: the mean of theirs."""

    def mean(model: nn.Module, tasks: tuple[Points, Points]) -> Tensor:
        params = fl.Tensors(dict(model.named_parameters()))
        return torch.func.vmap(outer, in_dims=(None, 0, 0))(params, *tasks).mean()

    return mean


def train(
    outer: Outer = after, iterations: int = 400, seed: int = 0, compiled: bool = False
) -> fl.Tensors:
    """The initial parameters after some outer steps of Adam."""
    step = fl.pipe(of_tasks(outer), fl.grad, fl.update(fl.optim.adam(1e-3)))
    state, _ = fl.fit(
        fl.compile(step) if compiled else step,
        step.init(start),
        endless(seed),
        steps=iterations,
        progress=False,
    )
    return state.params


def errors(
    params: fl.Tensors, steps: int = 10, rate: float = RATE, points: int = POINTS, seed: int = 1
) -> Tensor:
    """float[1 + steps, 600]: the error of each of 600 tasks after no step, one step, and so on.

    A step is on all `points`, of at most `POINTS`, that a task is learned from.
    """
    step = learning(rate)

    def of_task(learn: Points, evaluate: Points) -> Tensor:
        found, state = [], start.replace(params=params)
        for _ in range(steps + 1):
            found.append(state.apply(lambda model: loss(model, evaluate)))
            state = fl.unroll(step, state, [learn])
        return torch.stack(found)

    (x, y), others = sines(600, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return torch.func.vmap(of_task, out_dims=1)((x[:, :points], y[:, :points]), others)


def error(params: fl.Tensors) -> float:
    """The mean error of tasks after the inner steps."""
    return float(errors(params, INNER)[-1].mean())


def draw(curves: dict[int, dict[str, Tensor]], path: Path) -> None:
    """Errors against steps, with 95 percent intervals of their mean, and the paper's."""
    from matplotlib.figure import Figure

    colors = {"MAML": "#4a9d6e", "first-order MAML": "#e07b39", "trained on all sines": "#2f6fb0"}
    figure = Figure(figsize=(8.4, 3.8), dpi=120, layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, (points, found) in zip(both, curves.items(), strict=True):
        for name, each in found.items():
            mean, wide = each.mean(1), 1.96 * each.std(1) / each.shape[1] ** 0.5
            color = colors[name]
            axes.plot(range(len(mean)), mean, color=color, marker="o", markersize=3.5, label=name)
            axes.fill_between(range(len(mean)), mean - wide, mean + wide, color=color, alpha=0.2)
        axes.set(xlabel=f"steps on {points} points", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    for name, known in PAPER.items():
        paper = {"color": colors[name], "marker": "x", "markersize": 9, "markeredgewidth": 2}
        label = f"{name}, table 2 of the paper"
        both[0].plot(list(known), list(known.values()), linestyle="none", label=label, **paper)
    both[0].set_ylabel("mean squared error")
    both[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> dict[int, dict[str, Tensor]]:
    """Train in three ways; print the errors, and draw them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--iterations", type=int, default=70_000)
    parser.add_argument("--plot", type=Path, default=Path("runs/maml.png"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads would only get into each other's way in a network this small
    ways = {"MAML": after, "first-order MAML": first_order, "trained on all sines": at_once}
    curves: dict[int, dict[str, Tensor]] = {5: {}, 10: {}}
    print(f"{'error after':<38}{'1 step':>8}{'5':>7}{'10':>7}")
    for name, outer in ways.items():
        learned = train(outer, given.iterations, compiled=given.iterations > 2000)
        for points, found in curves.items():
            # What was trained on all sines has the better of some rates, as in the paper.
            rates = (0.005, 0.01, 0.02) if outer is at_once else (RATE,)
            tried = [errors(learned, rate=rate, points=points) for rate in rates]
            found[name] = min(tried, key=lambda each: float(each[-1].nan_to_num(math.inf).mean()))
            means = {steps: float(found[name][steps].mean()) for steps in (1, 5, 10)}
            print(row(f"{name}, {points} points", means), flush=True)
    for name, known in PAPER.items():
        print(row(f"{name}, 5 points, the paper", known))
    draw(curves, given.plot)
    return curves


def row(name: str, means: dict[int, float]) -> str:
    return f"{name:<38}" + "".join(
        f"{means[steps]:>{8 if steps == 1 else 7}.2f}" for steps in means
    )


if __name__ == "__main__":
    main()
