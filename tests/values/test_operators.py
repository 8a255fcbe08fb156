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
        (lambda: 2 / G, "zip_map"),
        (lambda: G**2, "mul"),
        (lambda: 2**G, "zip_map"),
        (lambda: G @ G, "map_named"),
    ],
)
def test_an_operator_names_the_method(operation, method):
    with pytest.raises(TypeError, match=rf"fl\.Tensors has no operator .*grads\.{method}\("):
        operation()


def test_in_place_operators_too():
    g = G
    with pytest.raises(TypeError, match="add"):
        g += G
