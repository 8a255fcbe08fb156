"""A network that solves the heat equation: Adam first, and L-BFGS to the end.

A physics-informed network (Raissi et al., 2019) has no data. Its loss is how badly it obeys a
differential equation at some points, and what is known at the start and at the edges. Here that is
a rod, hot in two bumps, that cools between two cold ends; the solution is known::

    u_t = k u_xx,  u(0, t) = u(1, t) = 0,  u(x, 0) = sin(pi x) + 1/2 sin(3 pi x)

    python examples/pinn.py            # 15 seconds; see runs/pinn/solution.png
    python examples/pinn.py --smoke    # some seconds: does it run?

There is no noise in the loss, so its curvature can be trusted. After 1000 steps of Adam the error
is 0.9 %; 1300 evaluations of L-BFGS bring it to 0.03 %, where 2500 more steps of Adam end at 0.2 %.
It takes float64, as losses are compared whose differences float32 would round away.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

import fnloop as fl

torch.set_num_threads(1)  # threads would only get into each other's way in a network this small

Curve: TypeAlias = tuple[list[int], list[float]]
"""Numbers of evaluations, and the losses at them."""

K = 0.05
"""How well the rod conducts."""


def solution(points: Tensor) -> Tensor:
    """The temperature at points (x, t), by Fourier's series, which has two terms: ``[n]``."""
    x, t = points.unbind(1)

    def term(m: int) -> Tensor:
        return torch.exp(-K * (m * math.pi) ** 2 * t) * torch.sin(m * math.pi * x)

    return term(1) + 0.5 * term(3)


class Network(nn.Module):
    """The temperature that a network believes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, 1),
        ).double()

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(2 * points - 1).squeeze(1)


def loss(model: Network, points: dict[str, Tensor]) -> tuple[fl.Mean, dict[str, fl.Mean]]:
    """How badly the equation, the start and the edges are met."""
    inside = points["inside"].detach().requires_grad_()
    u = model(inside)
    (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
    (second,) = torch.autograd.grad(slope[:, 0].sum(), inside, create_graph=True)
    equation = (slope[:, 1] - K * second[:, 0]).square().mean()
    start = (model(points["start"]) - solution(points["start"])).square().mean()
    edges = model(points["edges"]).square().mean()
    known = start + edges
    found = {"equation": fl.Mean(equation, 1), "known": fl.Mean(known, 1)}
    return fl.Mean(equation + 10 * known, 1), found


def chosen(n: int) -> dict[str, Tensor]:
    """The points where the loss looks: `n` inside, and on the border 10 for each 100 of them."""
    sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0)
    line = torch.linspace(0, 1, n // 10, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return {
        "inside": sobol.draw(n, dtype=torch.float64),
        "start": torch.stack([line, torch.zeros_like(line)], 1),
        "edges": torch.cartesian_prod(ends, line),
    }


def grid(n: int = 101) -> Tensor:
    """All points with `n` places and `n` times: ``[n * n, 2]``."""
    line = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def error(state: fl.State) -> float:
    """The distance to the solution, relative to its size, in the mean over the grid."""
    points = grid()
    with torch.no_grad():
        off = fl.to_module(state)(points) - solution(points)
    return float(off.norm() / solution(points).norm())


def train(
    adam: int = 1000, newton: int = 60, points: int = 1000, width: int = 24
) -> tuple[fl.State, fl.State, Curve]:
    """Train with `adam` steps of Adam, and `newton` steps of L-BFGS, 20 iterations each.

    Returns:
        The state after Adam, the last one, and the losses.
    """
    data = [chosen(points)]  # one batch, over and over
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(5e-3)))
    first, history = fl.fit(step, step.init(lambda: Network(width), seed=0), data, steps=adam)
    print(f"{adam} steps of Adam: loss {history['loss'][-1]:.1e}, error {error(first):.1e}")
    losses, at = list(history["loss"]), list(range(1, adam + 1))

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.lbfgs(history_size=50)))
    state = step.init(first)  # the same parameters, and room for the memory of L-BFGS
    for new, metrics in fl.run(step, state, data, steps=newton):
        losses.append(float(metrics["loss"]))
        at.append(at[-1] + int(metrics["lbfgs.evaluations"]))
        state = new
    print(f"{at[-1] - adam} evaluations of L-BFGS: loss {losses[-1]:.1e}, error {error(state):.1e}")
    return first, state, (at, losses)


def draw(first: fl.State, last: fl.State, curve: Curve, path: Path) -> None:
    """The solution, how far both states are from it, and the loss on the way."""
    from matplotlib.figure import Figure

    n, points = 101, grid()
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    (top, bottom), errors = figure.subplots(2, 2), []
    for state in (first, last):
        with torch.no_grad():
            errors.append((fl.to_module(state)(points) - solution(points)).reshape(n, n))
    panels = [
        (top[0], solution(points).reshape(n, n), "the solution", "inferno"),
        (bottom[0], errors[0], "the network less the solution, after Adam", "RdBu"),
        (bottom[1], errors[1], "after L-BFGS", "RdBu"),
    ]
    for axes, values, title, colours in panels:
        most = float(values.abs().max())
        shown = axes.imshow(
            values.numpy(),
            origin="lower",
            extent=(0, 1, 0, 1),
            aspect="auto",
            cmap=colours,
            vmin=-most if colours == "RdBu" else 0,
            vmax=most,
        )
        axes.set(title=title, xlabel="time", ylabel="place")
        figure.colorbar(shown, ax=axes)
    at, losses = curve
    began = int(first.step)
    top[1].semilogy(at[:began], losses[:began], label="Adam")
    top[1].semilogy(at[began - 1 :], losses[began - 1 :], label="L-BFGS")
    top[1].set(title="loss", xlabel="evaluations of loss and gradient")
    top[1].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Train, tell the error and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/pinn"))
    parser.add_argument("--smoke", action="store_true", help="a few steps of a small network")
    given = parser.parse_args()
    small = {"adam": 20, "newton": 2, "points": 100, "width": 8} if given.smoke else {}
    first, last, curve = train(**small)
    draw(first, last, curve, given.folder / "solution.png")


if __name__ == "__main__":
    main()
