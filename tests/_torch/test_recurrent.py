"""Which kernel an LSTM is recorded with."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from fnloop._torch.transformable import transformable
from tests._torch.test_graph import operations, recorded


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_under_vmap_it_is_products_which_have_batching_rules():
    layer = nn.LSTM(2, 3)
    names = [name for name, _ in layer.named_parameters()]

    def loss(weights, x):
        own = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, own, x)[0].square().sum()

    def slopes(x, *weights):
        alone = [w[0].detach().requires_grad_() for w in weights]
        with transformable(), torch.enable_grad():
            together = torch.vmap(torch.func.grad(loss), (0, None))(weights, x)
            return [*[g[0] for g in together], *torch.autograd.grad(loss(alone, x), alone)]

    weights = [torch.randn(6, *w.shape) for w in layer.parameters()]
    inputs = torch.randn(4, 5, 2), *weights
    found = recorded(slopes, *inputs)
    assert operations(found).count("aten.mkldnn_rnn_layer.default") == 1  # of the one alone
    gradients = found(*inputs)
    for ours, alone in zip(gradients[: len(names)], gradients[len(names) :], strict=True):
        torch.testing.assert_close(ours, alone)
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    "options, calls",
    [
        ({}, 1),
        ({"bias": False, "batch_first": True}, 1),
        ({"num_layers": 2, "bidirectional": True}, 4),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_an_lstm_is_the_layer_of_onednn_forward_and_backward(options, calls, training):
    layer = nn.LSTM(2, 3, **options).train(training)
    weights = {name: w.detach() for name, w in layer.named_parameters()}

    def slopes(x, *given):
        given = [x.detach().requires_grad_(), *(w.detach().requires_grad_() for w in given)]
        own = dict(zip(weights, given[1:], strict=True))
        with torch.enable_grad():
            out, (h, c) = torch.func.functional_call(layer, own, given[0])
            return list(torch.autograd.grad(out.square().sum() + (h * c).sum(), given))

    inputs = torch.randn(4, 5, 2), *weights.values()
    found = recorded(slopes, *inputs)
    counts = Counter(operations(found))
    assert counts["aten.mkldnn_rnn_layer.default"] == calls
    assert counts["aten.mkldnn_rnn_layer_backward.default"] == calls
    for ours, theirs in zip(found(*inputs), slopes(*inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_an_lstm_that_onednn_has_not_is_recorded_as_products():
    layer = nn.LSTM(2, 3).double().requires_grad_(False)
    x = torch.randn(4, 1, 2, dtype=torch.float64)
    found = recorded(lambda x: [layer(x)[0]], x)
    assert not any("mkldnn" in name for name in operations(found))
    torch.testing.assert_close(found(x)[0], layer(x)[0])
