"""Outputs as arrays by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fnloop.store.columns import as_columns


def test_leaves_have_their_paths():
    tree = {"a": [torch.zeros(2), np.ones((2, 3))], "b": torch.zeros(2, dtype=torch.int8)}
    found = as_columns(tree)
    assert {name: (a.dtype.name, a.shape) for name, a in found.items()} == {
        "a/0": ("float32", (2,)),
        "a/1": ("float64", (2, 3)),
        "b": ("int8", (2,)),
    }
    assert list(as_columns(torch.zeros(2))) == [""]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_numpy_lacks_becomes_float32_with_the_same_values(dtype):
    x = torch.tensor([0.1, -2.5, 300.0]).to(dtype)
    (found,) = as_columns(x).values()
    assert found.dtype == np.float32 and torch.equal(torch.from_numpy(found), x.float())


def test_views_that_conjugate():
    x = torch.tensor([1 + 2j])
    assert as_columns(x.conj())[""].tolist() == [1 - 2j]
    assert as_columns(x.conj().imag)[""].tolist() == [-2.0]


@pytest.mark.parametrize("output", [1.0, torch.tensor(1.0), "text", {"a": np.array(["text"])}])
def test_others_are_refused(output):
    with pytest.raises(ValueError, match="predictions are"):
        as_columns(output)
