"""Accumulation against one backward over the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


def token_loss(model, batch):
    """A language model's: a mean over the tokens that are no padding."""
    tokens, targets = batch
    losses = F.cross_entropy(
        model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
    )
    return fl.Mean(losses, (targets != -1).sum())


def tokens(n, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 11, (n, length), generator=generator)
    y = torch.randint(0, 11, (n, length), generator=generator)
    keep = torch.rand(n, length, generator=generator) < 0.6
    return x, torch.where(keep, y, -1)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11))


@pytest.mark.lightning("T24", "X3")
def test_ragged_micro_batches_of_a_token_weighted_loss_are_the_big_batch():
    net, (x, y) = model(), tokens(10, 7)
    step = fl.pipe(token_loss, fl.grad, fl.accumulate(4))  # parts of 2, 3, 2 and 3 sequences
    _, grads = step(step.init(net), (x, y))
    F.cross_entropy(
        net(x).flatten(0, 1), y.flatten(), ignore_index=-1
    ).backward()  # mean over tokens
    assert int(grads.weight) == int((y != -1).sum()) and grads.weight.dtype == torch.int64
    for name, p in net.named_parameters():
        torch.testing.assert_close(grads.mean[name], p.grad)


def test_ready_made_micro_batches_of_unequal_size_with_a_scalar_loss():
    net = nn.Linear(3, 2)
    x, y = torch.randn(9, 3), torch.randint(0, 2, (9,))
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.accumulate(3), fl.update(fl.optim.sgd(0.1)))
    cuts = [(0, 1), (1, 3), (3, 9)]
    micro = fl.data.Micro(tuple((x[a:b], y[a:b]) for a, b in cuts))
    state, metrics = step(step.init(net), micro)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    value = loss(net, (x, y))
    value.backward()
    optimizer.step()
    assert float(metrics["loss"]) == pytest.approx(value.item(), rel=1e-6)
    for name, p in net.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach())


def test_micro_batches_of_other_lengths():
    net = model()
    a, b = tokens(2, 5, seed=1), tokens(3, 9, seed=2)
    step = fl.pipe(token_loss, fl.grad, fl.accumulate(2))
    _, grads = step(step.init(net), fl.data.Micro((a, b)))
    total = sum(
        F.cross_entropy(net(x).flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
        for x, y in (a, b)
    )
    (total / grads.weight).backward()
    assert int(grads.weight) == int((a[1] != -1).sum() + (b[1] != -1).sum())
    for name, p in net.named_parameters():
        torch.testing.assert_close(grads.mean[name], p.grad)


def test_each_micro_batch_has_its_own_randomness():
    masks = []

    def loss(m, x):
        masks.append(F.dropout(torch.ones(40), 0.5, training=True))
        return m(x).mean()

    step = fl.pipe(loss, fl.grad, fl.accumulate(2))
    step(step.init(nn.Linear(2, 1)), torch.ones(4, 2))
    assert not torch.equal(masks[0], masks[1])


def test_more_parts_than_examples():
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.accumulate(8))
    _, grads = step(step.init(nn.Linear(2, 1)), torch.ones(3, 2))
    assert float(grads.weight) == 3


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fl.accumulate(0)(fl.grad(token_loss))
    step = fl.pipe(token_loss, fl.grad, fl.accumulate(2))
    with pytest.raises(ValueError, match="no parts"):
        step(step.init(model()), fl.data.Micro(()))
