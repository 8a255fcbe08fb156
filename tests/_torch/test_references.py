from __future__ import annotations

import torch

from fnloop._torch import references


def test_storage_users_counts_views():
    x = torch.zeros(4)
    storage = references.storage_of(x)._cdata
    assert references.users_of(storage) == references.LONE
    views = [x[:2], x.view(2, 2), x.detach()]
    assert references.users_of(storage) == references.LONE + 3
    array = x.numpy()  # a user like any view: what it shows must not be overwritten
    assert references.users_of(storage) == references.LONE + 4
    del views
    assert references.users_of(storage) == references.LONE + 1
    del array
    assert references.users_of(storage) == references.LONE
    assert references.storage_of(x) is references.storage_of(x)
