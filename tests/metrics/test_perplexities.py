from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fnloop.metrics.perplexities import perplexity
from fnloop.values.merging import merge
from fnloop.values.metrics import Mean


def test_is_the_exponential_of_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 11, 6, generator=generator)
    targets = torch.randint(11, (4, 6), generator=generator)
    targets[1, 2:] = -100
    expected = math.exp(float(cross_entropy(logits.double(), targets)))
    assert float(perplexity(logits, targets)) == pytest.approx(expected, rel=1e-6)
    parts = [(logits[:1], targets[:1]), (logits[1:], targets[1:])]
    merged = merge({"p": perplexity(x, y)} for x, y in parts)["p"]
    assert float(merged) == pytest.approx(expected, rel=1e-6)


def test_from_a_mean_merges_before_the_exponential() -> None:
    loss = Mean(torch.tensor(2.0, requires_grad=True), torch.tensor(4.0, dtype=torch.float64))
    metric = perplexity(loss)
    assert not metric.total.requires_grad  # pyright: ignore
    merged = metric.merge(perplexity(Mean(torch.tensor(7.0), 2)))
    assert float(merged) == pytest.approx(math.exp(9 / 6))


def test_half_precision_logits() -> None:
    logits = torch.zeros(3, 1000, dtype=torch.bfloat16)
    assert float(perplexity(logits, torch.tensor([1, 2, 3]))) == pytest.approx(1000, rel=1e-5)


def test_targets_are_needed() -> None:
    with pytest.raises(TypeError, match="logits and targets, or an fl"):
        perplexity(torch.zeros(2, 3))  # pyright: ignore
