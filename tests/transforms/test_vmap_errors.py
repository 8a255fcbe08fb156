"""What is said where the members of a population can be trained, and not all at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.transforms.vmap_errors import NOTE, RECORDED


class Packed(nn.Module):
    """An LSTM over sequences of different lengths, which vmap cannot run."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.lstm(packed)[1][0][-1])


def loss(model, batch):
    x, lengths, y = batch
    return nn.functional.cross_entropy(model(x, lengths), y)


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
BATCH = (torch.randn(4, 5, 4), torch.tensor([5, 3, 2, 4]), torch.tensor([0, 1, 1, 0]))


def notes(many, batch):
    with pytest.raises(Exception) as caught:
        many(many.init(Packed, seed=0), batch)
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
    loop(loop.init(Packed, seed=0), BATCH)


def test_members_with_batches_of_their_own():
    many = fl.ensemble(STEP, 2, batches="own")
    assert NOTE in notes(many, [BATCH, BATCH])


def test_what_fails_alone_too_gets_no_advice():
    x, lengths, y = BATCH
    many = fl.ensemble(STEP, 3)
    assert NOTE not in notes(many, (x, lengths, y + 7))


def first_value(model, batch):
    """A loss that asks for a value, which a recording has not; eager steps of one run have it."""
    return model(batch).square().mean() * (2.0 if bool((batch > 0).all()) else 1.0)


def test_a_loop_may_be_compiled_where_all_at_once_may_not():
    step = fl.pipe(first_value, fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.compile(fl.ensemble(step, 2), backend="aot_eager")
    with pytest.raises(fl.errors.CompileError) as caught:
        many(many.init(lambda: nn.Linear(2, 1)), torch.ones(3, 2))
    assert RECORDED in caught.value.__notes__
