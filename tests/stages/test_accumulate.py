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


PARTS_BY_EPOCH = fl.schedules.by_epoch({1: 2, 2: 4})  # Lightning's {1: 2, 2: 4}: at first 1


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def points():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=g)
    return x, x[:, :3].argmax(1)


def cross_entropy(network, batch):
    x, y = batch
    return F.cross_entropy(network(x), y)


def torchs(steps):
    """Train by torch: a step for each list of micro-batches, with the mean over all examples."""
    network = normed().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for parts in steps:
        optimizer.zero_grad()
        count = sum(len(y) for _, y in parts)
        for x, y in parts:
            (cross_entropy(network, (x, y)) * (len(y) / count)).backward()
        optimizer.step()
    return network.state_dict()


def assert_trained(state, expected):
    for name, value in {**state.params, **state.buffers}.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.lightning("C10")
def test_the_number_of_parts_by_epoch_is_that_of_a_loop_of_torch():
    data = fl.Batches(points(), 16, shuffle=False)  # 16, 16 and 8 examples
    whole = list(zip(*(t.split(16) for t in points()), strict=True))
    steps = [
        list(zip(*(t.tensor_split(k) for t in batch), strict=True))
        for k in (1, 2, 4)
        for batch in whole
    ]
    step = fl.pipe(
        cross_entropy, fl.grad, fl.accumulate(PARTS_BY_EPOCH), fl.update(fl.optim.adamw(1e-2))
    )
    state, _ = fl.fit(step, step.init(normed()), data, epochs=3)
    assert_trained(state, torchs(steps))


@pytest.mark.lightning("C10")
def test_batches_that_grow_by_epoch_are_those_of_a_loop_of_torch():
    """Five batches an epoch: steps of 1; of 2, 2 and 1; of 4 and 1."""
    small = list(zip(*(t.split(8) for t in points()), strict=True))

    def grouped(k):
        return [small[i : i + k] for i in range(0, len(small), k)]

    def grown(epoch):
        return [fl.data.Micro(tuple(parts)) for parts in grouped(PARTS_BY_EPOCH.at(epoch) or 1)]

    step = fl.pipe(cross_entropy, fl.grad, fl.accumulate(1), fl.update(fl.optim.adamw(1e-2)))
    state, _ = fl.fit(step, step.init(normed()), grown, epochs=3)
    assert int(state.step) == 5 + 3 + 2
    assert_trained(state, torchs([parts for k in (1, 2, 4) for parts in grouped(k)]))
    fl.testing.check_resumes(step, step.init(normed()), grown, steps=10, at=(4, 5, 7, 9))


def test_compiled_there_is_a_graph_for_each_number_of_parts():
    step = fl.pipe(
        cross_entropy,
        fl.grad,
        fl.accumulate(fl.schedules.by_step({2: 2})),
        fl.update(fl.optim.sgd(0.1)),
    )
    fast = fl.compile(step, backend="aot_eager")
    state = same = step.init(normed())
    for _ in range(4):
        (state, _), (same, _) = step(state, points()), fast(same, points())
    assert fast.graphs == 2
    torch.testing.assert_close(dict(state.params), dict(same.params))
    torch.testing.assert_close(dict(state.buffers), dict(same.buffers))


@pytest.mark.parametrize("k", [0, 2.5, "2"])
def test_a_number_of_parts_in_a_schedule_is_checked_at_once(k):
    with pytest.raises(
        (TypeError, ValueError), match=r"accumulate\(.*a whole number of at least 1"
    ):
        fl.accumulate(fl.schedules.by_epoch({3: k}))(fl.grad(cross_entropy))
