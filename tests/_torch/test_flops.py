"""Operations are counted as torch's own counter does, but for convolutions with groups."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fnloop._torch.flops import CountFlops, in_backward


def ran(layer, x):
    x = x.requires_grad_()
    with CountFlops() as counted:
        layer(x).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        layer(x).sum().backward()
    return counted, theirs.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 4), (3, 5, 8)),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
        (nn.MultiheadAttention(8, 2), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_they_are_those_of_torchs_counter(layer, shape):
    if isinstance(layer, nn.MultiheadAttention):  # with weights: by products
        counted, theirs = ran(lambda x: layer(x, x, x)[0], torch.ones(5, 2, 8))
    else:
        counted, theirs = ran(layer, torch.ones(shape))
    assert counted.forward > 0 and counted.forward + counted.backward == theirs


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_each_gradient_of_a_convolution_takes_as_much_as_the_forward_pass(kind, groups):
    counted, _ = ran(kind(8, 8, 3, groups=groups), torch.ones(2, 8, 9, 9))
    places = 49 if kind is nn.Conv2d else 81
    assert counted.forward == 2 * 2 * places * 8 * 8 // groups * 9
    assert counted.backward == 2 * counted.forward


def test_attention_on_the_cpu_counts():
    counted, _ = ran(lambda x: F.scaled_dot_product_attention(x, x, x), torch.ones(2, 3, 5, 4))
    assert counted.forward == 4 * 2 * 3 * 5 * 5 * 4
    assert counted.backward == 2.5 * counted.forward  # its kernel computes the scores again


def test_what_is_composed_of_others_is_taken_apart():
    with torch.inference_mode(), CountFlops() as counted:
        nn.Linear(8, 4)(torch.ones(3, 8))
    assert counted.forward == 2 * 3 * 8 * 4


def test_the_engine_is_known():
    seen, x = [in_backward()], torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(in_backward()))
    x.sum().backward()
    torch.func.grad(lambda y: (seen.append(in_backward()), y.sum())[1])(torch.ones(2))
    assert seen == [False, True, False]
