"""Batches whose sizes vary: a graph for all of them, where that can be."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop.transforms.varying import Form

SHAPES = [(6, 8), (6, 11), (4, 9), (3, 20), (1, 9), (6, 8)]


def texts(shapes):
    generator = torch.Generator().manual_seed(0)
    for rows, length in shapes:
        ends = torch.randint(2, length + 1, (rows, 1), generator=generator)
        yield {
            "tokens": torch.randint(30, (rows, length), generator=generator),
            "mask": torch.arange(length) < ends,
            "label": torch.randint(3, (rows,), generator=generator),
        }


class Classifier(nn.Module):
    """Attention with a mask for padding, dropout, learned positions."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(30, 8), nn.Embedding(40, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        x = self.embedding(tokens) + self.places(torch.arange(tokens.shape[1]))
        x = x + self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        x = (self.drop(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(x)


class Mean(nn.Module):
    """The cheapest classifier of texts."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 4), nn.Linear(4, 3)

    def forward(self, tokens, mask):
        return self.head((self.embedding(tokens) * mask[..., None]).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind, dropout):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 4), nn.Linear(4, 3)
        self.layers = kind(4, 4, 2, batch_first=True, dropout=dropout)

    def forward(self, tokens, mask):
        return self.head(self.layers(self.embedding(tokens))[0].mean(1))


def entropy(model, batch):
    return F.cross_entropy(model(batch["tokens"], batch["mask"]), batch["label"])


def graphs_of(loss, model, batches, *stages, backend="aot_eager", dynamic=True, tolerance=1e-5):
    """The number of graphs after each batch, where each step agrees with the uncompiled one."""
    step = fl.pipe(loss, fl.grad, *stages, fl.update(fl.optim.sgd(0.1)))
    fast = fl.compile(step, donate=True, backend=backend, dynamic=dynamic)
    expected, got = step.init(model, seed=0), fast.init(model, seed=0)
    found = []
    for batch in batches:
        expected, metrics = step(expected, batch)
        got, reported = fast(got, batch)
        found.append(fast.graphs)
        for name, value in expected.params.items():
            torch.testing.assert_close(got.params[name], value, rtol=tolerance, atol=tolerance)
        leaves, others = fl.tree_leaves(metrics), fl.tree_leaves(reported)
        assert list(map(type, leaves)) == list(map(type, others))
        for a, b in zip(leaves, others, strict=True):
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
    return found


def test_lengths_then_sizes_of_the_batch_then_none():
    # One for the first shape, one for all lengths, one for all lengths and rows, one for one row.
    assert graphs_of(entropy, Classifier, texts(SHAPES)) == [1, 2, 3, 3, 4, 4]


def test_the_short_last_batch_is_for_all_sizes():
    assert graphs_of(entropy, Mean, texts([(6, 8), (6, 8), (2, 8), (5, 8)])) == [1, 1, 2, 2]


def test_micro_batches():
    shapes = [(6, 8), (8, 8), (10, 8), (9, 8)]
    assert graphs_of(entropy, Mean, texts(shapes), fl.accumulate(2)) == [1, 2, 2, 2]


def test_a_mean_whose_weight_is_a_size():
    def loss(model, batch):
        tokens, rows = batch["tokens"], batch["tokens"].shape[0]
        losses = F.cross_entropy(model(tokens, batch["mask"]), batch["label"], reduction="none")
        per_token = fl.Mean(losses.sum(), tokens.numel())
        return fl.Mean(losses.sum(), rows), {"a": per_token, "b": rows / 2, "c": fl.Last(rows)}

    assert graphs_of(loss, Mean, texts(SHAPES)) == [1, 2, 3, 3, 4, 4]


def test_metrics_of_a_step_that_are_sizes_are_numbers():
    def step(state, batch):
        return state, {"rows": fl.Sum(batch.shape[0]), "half": fl.Last(batch.shape[0] / 2)}

    fast = fl.compile(step, backend="aot_eager", dynamic=True)
    state = fl.pipe(entropy, fl.grad).init(Mean)
    for rows in (4, 6, 9):
        _, metrics = fast(state, torch.zeros(rows, 2))
        assert (metrics["rows"].total, metrics["half"].latest) == (rows, rows / 2)
        assert type(metrics["rows"].total) is int
    assert fast.graphs == 2


def test_random_numbers_are_those_of_the_step_to_the_bit():
    def loss(model, batch):
        rows, length = batch["tokens"].shape
        drawn = {
            "uniform": torch.rand(rows, length),
            "like": torch.randn_like(batch["tokens"].mT.float()),
            "order": torch.randperm(length),
            "below": torch.randint(0, length, (rows,)),
            "wide": torch.empty(rows, 2).uniform_(0, 2),
            "coins": torch.bernoulli(torch.full((rows,), 0.3)),
        }
        value = entropy(model, {**batch, "tokens": batch["tokens"][:, drawn["order"]]})
        return value, {name: fl.Last(each) for name, each in drawn.items()}

    step = fl.pipe(loss, fl.grad)
    fast = fl.compile(step, backend="aot_eager", dynamic=True)
    state = step.init(Mean, seed=0)
    for batch in texts(SHAPES[:4]):
        expected, got = step(state, batch)[1].metrics, fast(state, batch)[1].metrics
        for name in ("uniform", "like", "order", "below", "wide", "coins"):
            assert torch.equal(expected[name].latest, got[name].latest), name
    assert fast.graphs == 3


def test_labels_that_are_shifted_and_padded():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(30, 4), nn.Linear(4, 30)

        def forward(self, tokens):
            return self.head(self.embedding(tokens).cumsum(1))

    def padded(model, batch):
        labels = torch.where(batch["mask"], batch["tokens"], -100)
        labels = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        scores = model(batch["tokens"])
        return F.cross_entropy(scores.view(-1, 30), labels.view(-1), ignore_index=-100)

    def shifted(model, batch):
        scores = model(batch["tokens"])[:, :-1].reshape(-1, 30)
        return F.cross_entropy(scores, batch["tokens"][:, 1:].reshape(-1))

    for loss in (padded, shifted):
        assert graphs_of(loss, Language, texts(SHAPES)) == [1, 2, 3, 3, 4, 4]


def test_bags_of_words():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bags, self.head = nn.EmbeddingBag(30, 4), nn.Linear(4, 3)

        def forward(self, tokens, mask):
            return self.head(self.bags(tokens))

    assert graphs_of(entropy, Bags, texts(SHAPES)) == [1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_images(memory):
    def images():
        for rows, height, width in [(3, 8, 8), (3, 12, 8), (3, 10, 11), (2, 9, 14), (4, 16, 8)]:
            x = torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(width))
            yield x.contiguous(memory_format=memory), torch.arange(rows) % 3

    def model():
        first = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        last = (nn.Dropout2d(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        return nn.Sequential(*first, nn.Conv2d(4, 4, 3), *last)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    assert graphs_of(loss, model, images()) == [1, 2, 3, 4, 4]


def test_slices_of_one_tensor():
    large = torch.randint(30, (5, 40), generator=torch.Generator().manual_seed(0))
    batches = [
        {"tokens": large[:, :n], "mask": torch.ones(5, n) > 0, "label": torch.arange(5) % 3}
        for n in (9, 12, 30)
    ]
    assert graphs_of(entropy, Mean, batches) == [1, 2, 2]


def test_a_branch_on_a_size_is_a_graph_for_each_way():
    def loss(model, batch):
        value = entropy(model, batch)
        return value * 2 if batch["tokens"].shape[1] > 12 else value / batch["tokens"].shape[1]

    shapes = [(6, 8), (6, 10), (6, 12), (6, 13), (6, 30), (6, 9)]
    assert graphs_of(loss, Mean, texts(shapes)) == [1, 2, 2, 3, 3, 3]


def test_what_takes_the_number_of_a_size_is_a_graph_for_each():
    def root(model, batch):
        return entropy(model, batch) / math.sqrt(batch["tokens"].shape[1])

    def tensor(model, batch):
        return entropy(model, batch) / torch.tensor(batch["tokens"].shape[1] / 2)

    def rounded(model, batch):
        return entropy(model, batch) / int(batch["tokens"].shape[1] * 0.5)

    def known(model, batch):
        return entropy(model, batch) * {n: n / 9 for n in range(40)}[batch["tokens"].shape[1]]

    shapes = [(6, 8), (6, 12), (6, 14), (4, 14), (3, 14)]
    for loss in (root, tensor, rounded):
        assert graphs_of(loss, Mean, texts(shapes)) == [1, 2, 3, 4, 4]  # any number of rows
    assert graphs_of(known, Mean, texts(shapes)) == [1, 2, 3, 4, 5]


def test_the_number_of_rows_by_len_is_one_and_lengths_vary():
    def loss(model, batch):
        losses = F.cross_entropy(
            model(batch["tokens"], batch["mask"]), batch["label"], reduction="none"
        )
        return fl.Mean(losses.sum(), len(losses))

    shapes = [(6, 8), (6, 12), (5, 8), (5, 9), (6, 14), (5, 19)]
    assert graphs_of(loss, Mean, texts(shapes)) == [1, 2, 3, 3, 3, 3]


def test_code_that_sees_that_a_size_is_no_integer(caplog):
    def by_type(model, batch):
        return entropy(model, batch) * (1 if isinstance(batch["tokens"].shape[1], int) else 2)

    def by_text(model, batch):
        return entropy(model, batch) * len(f"{batch['tokens'].shape[1]}")

    def by_weight(model, batch):
        size = batch["tokens"].shape[1]
        return fl.Mean(entropy(model, batch) * 6, 6 if isinstance(size, int) else 9)

    shapes = [(6, 11), (6, 12), (6, 14), (6, 15)]
    with caplog.at_level(logging.INFO, "fnloop.compile"):
        for loss in (by_type, by_text, by_weight):
            assert graphs_of(loss, Mean, texts(shapes)) == [1, 2, 3, 4]
    tried = [each for each in caplog.messages if "differs where sizes are symbols" in each]
    assert len(tried) == 6  # twice each, and no more


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_have_their_own_masks(kind):
    # What PyTorch composes in Python for such layers draws other masks than its C++.
    def padded(model, batch):
        return entropy(model, {**batch, "label": F.pad(batch["label"], (0, 1))[:-1]})

    shapes = [(5, 3), (4, 3), (3, 3)]
    assert graphs_of(padded, lambda: Recurrent(kind, 0.5), texts(shapes)) == [1, 2, 3]
    assert graphs_of(entropy, lambda: Recurrent(kind, 0.0), texts(shapes)) == [1, 2, 2]


def test_equal_sizes_that_part_later():
    shapes = [(4, 4), (6, 6), (5, 7), (3, 9)]
    assert graphs_of(entropy, Mean, texts(shapes)) == [1, 2, 3, 3]


def test_no_rows_and_one_row_are_their_own():
    def loss(model, batch):
        return fl.Mean(model(batch).square().sum(), batch.shape[0])

    batches = [torch.ones(n, 2) for n in (1, 5, 0, 4, 1, 0, 7)]
    found = graphs_of(loss, lambda: nn.Linear(2, 1), batches)
    assert found == [1, 2, 3, 4, 4, 4, 4]


def test_there_is_a_graph_for_each_shape_unless_asked_for_one():
    shapes = [(6, 8), (6, 11), (6, 12)]
    assert graphs_of(entropy, Mean, texts(shapes), dynamic=False) == [1, 2, 3]
    assert fl.compile(fl.pipe(entropy, fl.grad)).dynamic is False
    with pytest.raises(TypeError, match=r"dynamic=.* takes True or False, got None"):
        fl.compile(fl.pipe(entropy, fl.grad), dynamic=None)


def test_an_error_of_the_loss_is_that_of_the_shape():
    def loss(model, batch):
        return entropy(model, batch) + batch["label"].float() @ torch.ones(6)

    step = fl.compile(fl.pipe(loss, fl.grad), backend="aot_eager", dynamic=True)
    state, (first, second) = step.init(Mean), texts([(6, 8), (5, 8)])
    step(state, first)
    with pytest.raises(RuntimeError, match="5"):
        step(state, second)
    step(state, first)
    assert step.graphs == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_built_by_inductor():
    shapes = [(6, 8), (4, 11), (3, 20), (5, 7)]
    found = graphs_of(entropy, Classifier, texts(shapes), backend="inductor", tolerance=1e-4)
    assert found == [1, 2, 2, 2]


def test_the_form_of_a_tensor():
    x = torch.zeros(2, 3, 4, 5)
    assert Form.of(x) == Form((0, 1, 2, 3), None)
    assert Form.of(x.permute(3, 0, 2, 1)).of_shape((6, 2, 4, 3)) == (1, 72, 6, 24)
    assert Form.of(x[..., :3]) == Form(None, (60, 20, 5, 1))
    assert Form.of(torch.zeros(())).of_shape(()) == ()
