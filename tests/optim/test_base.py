from __future__ import annotations

import pytest
import torch

from fnloop.optim.algorithms.adam import adamw
from fnloop.optim.algorithms.sgd import sgd
from fnloop.optim.base import correction
from fnloop.optim.chains import chain
from fnloop.optim.labels import by_label
from fnloop.optim.masks import masked
from fnloop.optim.torch_bridge import from_torch
from fnloop.optim.transforms import clip_by_norm
from fnloop.schedules.decay import constant, cosine
from fnloop.values.choice import select
from fnloop.values.tensors import Tensors


@pytest.mark.lightning("C6")
def test_reported_are_the_learning_rate_the_decay_and_all_schedules():
    optimizer = adamw(1e-3, b1=constant(0.8), name="first")
    assert set(optimizer.hyperparameters()) == {"first.lr", "first.b1", "first.weight_decay"}


def test_resolve_gives_the_values_of_the_step():
    optimizer = adamw(cosine(1.0, steps=10), b1=constant(0.8), weight_decay=0.5)
    resolved = optimizer.resolve(5, {"adamw.lr": 0.1, "sgd.lr": 3.0})
    assert resolved.hyperparameters() == pytest.approx(
        {"adamw.lr": 0.05, "adamw.b1": 0.8, "adamw.weight_decay": 0.5}
    )
    assert resolved.b1 == 0.8 and resolved.eps == optimizer.eps and type(resolved) is adamw
    assert isinstance(optimizer.lr, cosine), "the optimizer itself stays as it is"


def test_resolve_with_tensors():
    resolved = sgd(0.5).resolve(torch.tensor(3), {"sgd.lr": torch.tensor(0.1)})
    assert resolved.lr == torch.tensor(0.05)
    assert resolved.weight_decay == 0.0


def test_a_penalty_of_zero_stays_a_number_so_that_it_can_be_left_out():
    resolved = sgd(0.5).resolve(0, {"sgd.weight_decay": torch.tensor(0.1)})
    assert resolved.weight_decay == 0.0 and isinstance(resolved.weight_decay, float)


def test_correction_keeps_its_digits_at_the_first_step():
    assert float(correction(0.999, torch.tensor(1.0))) == pytest.approx(0.001, rel=1e-12)


def test_updates_are_added_before_rounding_to_half_precision():
    params = Tensors({"w": torch.tensor([256.0], dtype=torch.bfloat16)})  # the next one is 258
    new = params.add(Tensors({"w": torch.tensor([1.5])}))
    assert new["w"].dtype == torch.bfloat16 and new["w"].item() == 258.0


def test_a_selection_is_bitwise():
    new, old = {"a": torch.tensor([torch.nan])}, {"a": torch.tensor([-0.0])}
    for kind in (dict, Tensors):
        new, old = kind(new), kind(old)
        for false in (False, torch.tensor(False)):
            assert torch.signbit(select(false, new, old)["a"])
        for true in (True, torch.tensor(True)):
            assert select(true, new, old)["a"].isnan()


def test_what_they_make():
    assert sgd().makes == "updates" and clip_by_norm(1.0).makes == "gradients"
    assert chain(clip_by_norm(1.0)).makes == "gradients"
    assert chain(clip_by_norm(1.0), sgd()).makes == "updates"


def test_values_are_given_by_the_names_that_are_reported():
    parts = {"a": adamw(cosine(1.0, steps=10), name="own"), "b": masked(sgd(0.5), ["w"])}
    optimizer = chain(clip_by_norm(constant(1.0)), by_label(parts, {"*": "a"}))
    values = {"a.own.lr": 0.25, "b.sgd.lr": cosine(0.1, steps=3), "clip_by_norm.max_norm": 2.0}
    given = optimizer.with_values({**values, "own.lr": 7.0})
    assert given.hyperparameters() == {**optimizer.hyperparameters(), **values}
    assert optimizer.hyperparameters()["b.sgd.lr"] == 0.5
    assert optimizer.with_values(optimizer.hyperparameters()) == optimizer
    wrapped = from_torch(torch.optim.SGD, lr=cosine(1.0, steps=10), momentum=0.9)
    assert wrapped.with_values({"sgd.lr": 0.5}) == from_torch(torch.optim.SGD, lr=0.5, momentum=0.9)
