from __future__ import annotations

import torch

from fnloop.values.choice import invert, select
from fnloop.values.looking import look


def test_it_looks_only_where_values_may_be_looked_at():
    assert look(torch.tensor(2.0)) == 2.0 and look(0) == 0
    assert look(torch.tensor(True)) is True
    assert isinstance(look(torch.ones(1)), torch.Tensor)  # no number
    wanted = torch.tensor(2.0, requires_grad=True)
    assert look(wanted) is wanted  # the derivative would be lost
    with torch.no_grad():
        assert look(wanted) == 2.0

    def traced(x):
        flag = look(x > 0)
        assert isinstance(flag, torch.Tensor)
        return select(invert(flag), torch.ones(()), torch.zeros(()))

    assert torch.func.vmap(traced)(torch.tensor([0.0, 2.0])).tolist() == [1, 0]
