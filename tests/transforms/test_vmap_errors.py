"""What is said where the members of a population can be trained, and not all at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.transforms.vmap_errors import NOTE, RECORDED


class Spectral(nn.Module):
    """A layer with a spectral norm, whose power iteration vmap cannot run."""

    def __init__(self):
        super().__init__()
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))

    def forward(self, x):
        return self.head(x)


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
BATCH = (torch.randn(4, 4), torch.tensor([0, 1, 1, 0]))


def notes(many, batch):
    with pytest.raises(Exception) as caught:
        many(many.init(Spectral, seed=0), batch)
    return getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize(
    "many",
    [
        fl.ensemble(STEP, 3),
        fl.ensemble(STEP, 3, chunk=2),
        fl.sweep(STEP, {"adamw.lr": [1e-3, 1e-2]}),
    ],
)
def test_a_loop_is_advised_where_it_works(many):
    assert NOTE in notes(many, BATCH)
    loop = dataclasses.replace(many, mode="loop", chunk=None)
    loop(loop.init(Spectral, seed=0), BATCH)


def test_members_with_batches_of_their_own():
    many = fl.ensemble(STEP, 2, batches="own")
    assert NOTE in notes(many, [BATCH, BATCH])


def test_what_fails_alone_too_gets_no_advice():
    x, y = BATCH
    many = fl.ensemble(STEP, 3)
    assert NOTE not in notes(many, (x, y + 7))


def first_value(model, batch):
    """A loss that asks for a value, which a recording has not; eager steps of one run have it."""
    return model(batch).square().mean() * (2.0 if bool((batch > 0).all()) else 1.0)


def test_a_loop_may_be_compiled_where_all_at_once_may_not():
    step = fl.pipe(first_value, fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.compile(fl.ensemble(step, 2), backend="aot_eager")
    with pytest.raises(fl.errors.CompileError) as caught:
        many(many.init(lambda: nn.Linear(2, 1)), torch.ones(3, 2))
    assert RECORDED in caught.value.__notes__
