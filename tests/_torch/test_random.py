"""torch's generators, seeded inside a block."""

from __future__ import annotations

import pytest
import torch

from fnloop._torch.random import seeded


@pytest.mark.parametrize("seed", [0, 5, -1, -(1 << 63), (1 << 63) - 1, -8123456789012345678])
def test_the_numbers_are_those_of_manual_seed(seed):
    expected = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    before = torch.default_generator.get_state()
    with seeded(seed):
        assert torch.equal(torch.rand(4), expected)
        assert torch.initial_seed() == seed % 2**64  # seeds of Python and NumPy are made of it
    assert torch.equal(torch.default_generator.get_state(), before)
