"""Curves show themselves in a notebook."""

from __future__ import annotations

import subprocess
import sys

import torch

import fnloop as fl

CODE = """
import sys, torch, fnloop as fl
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
_, history = fl.fit(step, step.init(torch.nn.Linear(1, 1)), [torch.ones(2, 1)], epochs=3)
figure = history.plot()
data, size = figure._repr_png_()
assert data.startswith(b"\\x89PNG") and size["width"] * 2 == int.from_bytes(data[16:20]), size
assert "matplotlib.pyplot" not in sys.modules  # which would show the figure a second time
"""


def test_a_figure_is_a_picture_without_pyplot() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_members_are_drawn_by_their_own_names() -> None:
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.ensemble(step, 5)
    state = many.init(lambda: torch.nn.Linear(1, 1))
    _, history = fl.fit(many, state, [torch.ones(2, 1)], epochs=2)
    (axes,) = history.plot(names=["loss[0]", "loss[3]"]).axes
    assert len(axes.get_lines()) == 6  # all members of the metric, and their median
