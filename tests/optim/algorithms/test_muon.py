from __future__ import annotations

import pytest
import torch

from fnloop.optim.algorithms.muon import muon
from fnloop.values.tensors import Tensors


def test_takes_matrices_only_and_says_what_to_do():
    params = Tensors({"w": torch.ones(2, 3), "bias": torch.ones(3), "conv": torch.ones(2, 2, 3)})
    with pytest.raises(ValueError, match=r"bias \(3,\), conv \(2, 2, 3\)\..*by_label"):
        muon().init(params)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_singular_values_of_the_update_are_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    params = Tensors({"w": torch.randn(shape, generator=generator)})
    optimizer = muon(1.0, weight_decay=0.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params, 0)
    values = torch.linalg.svdvals(updates["w"]) / max(1, shape[0] / shape[1]) ** 0.5
    assert values.min() > 0.5 and values.max() < 1.5
