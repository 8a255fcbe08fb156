from __future__ import annotations

import pytest
import torch

from fnloop.optim.torch_state import differences, pack, unpack, zeros
from fnloop.trees.nodes import tree_leaves

STATE = {
    "mean": torch.arange(3.0),
    "step": 2**40 + 1,
    "rate": 0.1,
    "on": True,
    "none": None,
    "inner": {"a": torch.ones(1), "n": 3},
    "list": [1, torch.zeros(2), None, {"x": 0.5}],
}


def test_there_and_back_with_types():
    packed = pack(STATE, "state")
    assert all(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(packed))
    back = unpack(packed)
    assert back.keys() == STATE.keys()
    for key in ("step", "rate", "on", "none"):
        assert back[key] == STATE[key] and type(back[key]) is type(STATE[key])
    assert torch.equal(back["mean"], STATE["mean"]) and back["inner"]["n"] == 3
    assert back["list"][0] == 1 and back["list"][2] is None and back["list"][3] == {"x": 0.5}


def test_copies_share_no_memory():
    packed = pack(STATE, "state")
    packed["tensors"]["mean"].add_(1)
    unpack(packed)["mean"].add_(1)
    assert torch.equal(STATE["mean"], torch.arange(3.0))
    assert torch.equal(packed["tensors"]["mean"], torch.arange(3.0) + 1)


def test_zeros_and_differences():
    packed = pack(STATE, "state")
    assert differences(packed, zeros(packed)) == []
    other = pack({**STATE, "mean": torch.ones(4), "extra": 1}, "state")
    assert differences(packed, other) == ["tensors.mean", "numbers.extra"]
    assert differences(packed, pack({**STATE, "rate": 1}, "state")) == ["numbers.rate"]


@pytest.mark.parametrize("bad", [{"x": {1, 2}}, {"x": "text"}, {3: 1.0}, {"x": {"y": object()}}])
def test_other_things_are_refused(bad):
    with pytest.raises(TypeError, match=r"state"):
        pack(bad, "state")
