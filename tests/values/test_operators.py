"""Named tensors have methods, no operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fnloop as fl

G = fl.Tensors({"w": torch.ones(2), "b": torch.ones(1)})


@pytest.mark.parametrize(
    ("operation", "method"),
    [
        (lambda: -0.1 * G, "scale"),
        (lambda: G * 2, "scale"),
        (lambda: torch.tensor(0.1) * G, "scale"),
        (lambda: np.float64(0.1) * G, "scale"),
        (lambda: G * G, "mul"),
        (lambda: G + G, "add"),
        (lambda: 1 + G, "add"),
        (lambda: G - G, "sub"),
        (lambda: 1 - G, "scale"),
        (lambda: torch.tensor(1.0) - G, "scale"),
        (lambda: -G, "scale"),
        (lambda: G / 2, "div"),
        (lambda: 2 / G, "map_named"),
        (lambda: G**2, "mul"),
        (lambda: 2**G, "map_named"),
        (lambda: abs(G), "abs"),
        (lambda: G @ G, "map_named"),
    ],
)
def test_an_operator_names_the_method(operation, method):
    with pytest.raises(TypeError, match=rf"fl\.Tensors has no operator .*mean\.{method}\("):
        operation()


def test_in_place_operators_too():
    g = G
    with pytest.raises(TypeError, match="add"):
        g += G


GRADS = fl.Grads(G, torch.tensor(3), torch.tensor(True), {})


@pytest.mark.parametrize(
    "operation",
    [
        lambda: GRADS * 0.5,
        lambda: torch.tensor(0.5) * GRADS,
        lambda: np.float64(0.5) * GRADS,
        lambda: GRADS / 2,
        lambda: GRADS + GRADS,
        lambda: -GRADS,
    ],
)
def test_gradients_say_that_their_mean_is_scaled(operation):
    hint = r"grads\.replace\(mean=grads\.mean\.scale\(0\.5\)\)"
    with pytest.raises(TypeError, match=f"Grads has no operator .*{hint}"):
        operation()


@pytest.mark.parametrize("compiled", [False, True])
def test_what_the_hints_say_works_in_a_step(compiled):
    """Half the gradient is half the step of plain descent, by each of the three ways."""

    def change(way):
        def function(state, batch):
            state, grads = fl.grad(lambda model, batch: model(batch).sum())(state, batch)
            return state, grads.replace(mean=way(grads.mean))

        step = fl.pipe(fl.stage(function, "grad"), fl.update(fl.optim.sgd(1.0)))
        state = step.init(torch.nn.Linear(2, 1))
        run = fl.compile(step, backend="aot_eager") if compiled else step
        return run(state, torch.ones(1, 2))[0].params.sub(state.params)["weight"]

    ways = [
        lambda mean: mean.scale(0.5),
        lambda mean: mean.div(2),
        lambda mean: mean.map_named(lambda g: 0.5 * g),
        lambda mean: {name: 0.5 * g for name, g in mean.items()},
    ]
    for way in ways:
        torch.testing.assert_close(change(way), torch.full((1, 2), -0.5))
