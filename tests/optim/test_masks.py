from __future__ import annotations

import pytest
import torch

from fnloop.optim.algorithms.adam import adamw
from fnloop.optim.algorithms.sgd import sgd
from fnloop.optim.chains import chain
from fnloop.optim.masks import masked
from fnloop.optim.transforms import add_decayed_weights, clip_by_norm, freeze
from fnloop.schedules.decay import constant
from fnloop.values.tensors import Tensors

PARAMS = Tensors({"body.w": torch.ones(2, 2), "body.b": torch.ones(2), "head.w": torch.ones(2, 2)})
GRADS = PARAMS.scale(3.0)


def test_an_optimizer_leaves_the_others_as_they_are():
    optimizer = masked(adamw(0.1, weight_decay=0.0), ["head"])
    memory = optimizer.init(PARAMS)
    assert list(memory["adamw"]["mu"]) == ["head.w"]
    updates, _ = optimizer.update(GRADS, memory, PARAMS, 0)
    assert list(updates) == list(PARAMS)
    assert torch.equal(updates["body.w"], torch.zeros(2, 2))
    new, _ = optimizer.apply(GRADS, memory, PARAMS, 0, True)
    assert new["body.w"] is PARAMS["body.w"] and new["body.b"] is PARAMS["body.b"]
    torch.testing.assert_close(new["head.w"], torch.full((2, 2), 0.9))


def test_gradients_of_the_others_pass_through_a_transform():
    decay = masked(add_decayed_weights(0.5), lambda name, p: p.ndim > 1)
    grads, _ = decay.update(GRADS, decay.init(PARAMS), PARAMS, 0)
    assert {n: float(g.flatten()[0]) for n, g in grads.items()} == {
        "body.w": 3.5,
        "body.b": 3.0,
        "head.w": 3.5,
    }
    assert decay.makes == "gradients"


def test_clipping_sees_only_its_own():
    clip = masked(clip_by_norm(1.0), "head")
    grads, _ = clip.update(GRADS, clip.init(PARAMS), PARAMS, 0)
    assert float(grads["head.w"].norm()) == pytest.approx(1.0, abs=1e-5)
    assert grads["body.w"] is GRADS["body.w"]


def test_freezing_some_after_an_optimizer():
    optimizer = chain(sgd(0.1), masked(freeze(), ["body"]))
    new, _ = optimizer.apply(GRADS, optimizer.init(PARAMS), PARAMS, 0, True)
    assert torch.equal(new["body.w"], PARAMS["body.w"])
    torch.testing.assert_close(new["head.w"], torch.full((2, 2), 0.7))
    assert optimizer.makes == "updates"


def test_hyperparameters_are_those_of_the_inner_one():
    optimizer = masked(sgd(constant(0.5)), ["head"])
    assert optimizer.resolve(3, {"sgd.lr": 0.1}).hyperparameters() == {
        "sgd.lr": 0.05,
        "sgd.weight_decay": 0.0,
    }


def test_a_name_that_fits_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'haed' fits no parameter.*body\.w"):
        masked(sgd(0.1), ["haed"]).init(PARAMS)
