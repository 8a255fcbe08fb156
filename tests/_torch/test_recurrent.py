"""Which kernel an LSTM is recorded with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fnloop._torch.recurrent import transformed_by_products
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
        with transformed_by_products(), torch.enable_grad():
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
