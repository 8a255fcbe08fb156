"""Under a transform, dropout draws the mask that it draws without: whatever the strides are."""

import pytest
import torch
import torch.nn.functional as F

from fnloop._torch.members import drawing

CPU = torch.device("cpu")
X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def dropped(x):
    return F.dropout(x.transpose(0, 1) * 2, 0.5)


def alone(seed, x):
    with drawing([seed], CPU):
        return dropped(x)


def test_each_member_of_a_vmapped_function_has_its_own_mask():
    stacked = torch.stack([X, X + 1, X + 2])
    with drawing([7, 8, 9], CPU):
        many = torch.func.vmap(dropped, randomness="different")(stacked)
    for i in range(3):
        assert torch.equal(many[i], alone(7 + i, stacked[i]))


def test_a_differentiated_function_has_the_mask_of_the_function():
    def total(x):
        with drawing([7], CPU):
            return dropped(x).sum()

    assert torch.equal(torch.func.grad(total)(X), (alone(7, X) != 0).transpose(0, 1) * 4.0)


@pytest.mark.parametrize("options", [{"p": 0.0}, {"p": 1.0}, {"training": False}])
def test_dropout_that_draws_nothing(options):
    with drawing([7, 8], CPU):
        many = torch.func.vmap(lambda x: F.dropout(x, **options), randomness="different")(X)
    assert torch.equal(many, torch.stack([F.dropout(x, **options) for x in X]))
