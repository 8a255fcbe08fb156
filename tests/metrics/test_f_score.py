from __future__ import annotations

import pytest
import sklearn.metrics
import torch
from torch import Tensor

from fnloop.metrics.f_score import Average, f1
from fnloop.values.merging import merge


def example(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(120, classes, generator=generator)
    logits[:, -1] -= 1
    return logits, torch.randint(max(classes - 1, 2), (120,), generator=generator)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_agrees_with_sklearn(average: Average) -> None:
    logits, targets = example(5)
    expected = sklearn.metrics.f1_score(targets, logits.argmax(1), average=average)
    assert float(f1(logits, targets, average)) == pytest.approx(expected, abs=1e-12)
    parts = zip(logits.split(50), targets.split(50), strict=True)
    merged = merge({"f1": f1(x, y, average)} for x, y in parts)["f1"]
    assert float(merged) == pytest.approx(expected, abs=1e-12)


def test_binary_agrees_with_sklearn_and_is_the_default_for_one_logit() -> None:
    logits, targets = example(2)
    expected = sklearn.metrics.f1_score(targets, logits[:, 1] > 0)
    assert float(f1(logits[:, 1], targets)) == pytest.approx(expected, abs=1e-12)
    macro = sklearn.metrics.f1_score(targets, logits[:, 1] > 0, average="macro")
    assert float(f1(logits[:, 1], targets, "macro")) == pytest.approx(macro, abs=1e-12)


def test_ignored_targets_do_not_count() -> None:
    logits, targets = example(4)
    masked = torch.where(torch.arange(120) % 3 == 0, -100, targets)
    keep = masked != -100
    expected = float(f1(logits[keep], targets[keep]))
    assert float(f1(logits, masked, ignore_index=-100)) == expected


def test_bad_averages() -> None:
    logits, targets = example(4)
    with pytest.raises(ValueError, match="got 'mean'"):
        f1(logits, targets, "mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="for 2 classes; there are 4"):
        f1(logits, targets, "binary")
