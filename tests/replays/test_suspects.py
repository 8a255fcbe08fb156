from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.replays.suspects import LIMIT, suspects
from fnloop.replays.watch import Call


def loss(model, batch):
    return model(batch["x"]).square().mean()


def call(batch, function=loss, model=None, offset=0):
    stage = fl.grad(function)
    return Call(stage, stage.init(model or nn.Linear(2, 1)), batch, offset)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 33])
def test_every_bad_example_is_found(size):
    for bad in ([0], [size - 1], sorted({0, size // 2, size - 1})):
        x = torch.rand(size, 2)
        x[bad] = torch.nan
        found, note = suspects(call({"x": x, "scale": 2.0}))
        assert [suspect.index for suspect in found] == bad and note == ""
        assert all(suspect.loss != suspect.loss for suspect in found)


def test_the_place_in_the_whole_batch_is_told():
    x = torch.rand(4, 2)
    x[3] = torch.inf
    assert suspects(call({"x": x}, offset=8))[0][0].index == 11


def test_a_gradient_alone_that_is_not_finite_is_found():
    def rooted(model, batch):
        return (model(batch["x"]) - model.bias).abs().sqrt().mean()

    x = torch.rand(8, 2) + 0.5
    x[6] = 0.0
    model = nn.Linear(2, 1)
    nn.init.ones_(model.weight)
    [suspect], _ = suspects(call({"x": x}, rooted, model))
    assert suspect.index == 6 and suspect.loss == 0.0


def test_with_batch_statistics_the_search_ends_at_a_pair():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    x = torch.rand(8, 2)
    x[5] = torch.nan
    found, _ = suspects(call({"x": x}, model=model))
    assert [(suspect.index, suspect.loss) for suspect in found] == [(4, None), (5, None)]


def test_a_loss_that_fails_on_parts_blames_nobody():
    def whole(model, batch):
        assert len(batch["x"]) == 8
        return loss(model, batch) * torch.nan

    found, note = suspects(call({"x": torch.rand(8, 2)}, whole))
    assert found == [] and "cannot be told" in note


def test_several_that_only_together_are_bad():
    def distances(model, batch):
        x = model(batch["x"])
        return (x[:, None] - x[None]).square().sum() / (len(batch["x"]) < 4)

    found, note = suspects(call({"x": torch.rand(4, 2)}, distances))
    assert found == [] and "takes several" in note


def test_a_batch_without_one_leading_dimension_is_not_cut():
    found, note = suspects(call({"x": torch.full((4, 2), torch.nan), "z": torch.ones(3)}))
    assert found == [] and "cannot be cut" in note


def test_the_search_is_bounded():
    found, note = suspects(call({"x": torch.full((4 * LIMIT, 2), torch.nan)}))
    assert 0 < len(found) <= LIMIT and "There may be more" in note
