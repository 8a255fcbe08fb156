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


def test_multi_label_by_hand() -> None:
    targets = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    guesses = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    logits = guesses * 2.0 - 1
    # Right, predicted and true ones of each label: 2, 3, 2; 1, 1, 2; 0, 1, 0; 0, 0, 0.
    scores = [4 / 5, 2 / 3, 0.0, 0.0]
    assert float(f1(logits, targets, "macro")) == pytest.approx(sum(scores) / 4, abs=1e-12)
    assert float(f1(logits, targets, "weighted")) == pytest.approx((4 / 5 + 2 / 3) / 2, abs=1e-12)
    assert float(f1(logits, targets, "micro")) == pytest.approx(6 / 9, abs=1e-12)
    assert float(f1(logits, targets)) == pytest.approx(6 / 9, abs=1e-12)
    assert float(f1(logits, targets.float(), "macro")) == pytest.approx(sum(scores) / 4, abs=1e-12)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_multi_label_agrees_with_sklearn(average: Average) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(100, 5, generator=generator) - 0.5
    targets = (torch.randn(100, 5, generator=generator) > 0).long()
    targets[:, 3], logits[:, 3] = 0, -1.0  # a label that never occurs
    expected = sklearn.metrics.f1_score(targets, logits > 0, average=average, zero_division=0)  # pyright: ignore[reportArgumentType]
    assert float(f1(logits, targets, average)) == pytest.approx(expected, abs=1e-12)
    parts = zip(logits.split(30), targets.split(30), strict=True)
    merged = merge({"f1": f1(x, y, average)} for x, y in parts)["f1"]
    assert float(merged) == pytest.approx(expected, abs=1e-12)
    assert merged.merge(merged.empty()) == merged
    found = torch.func.vmap(lambda x: f1(x, targets, average).value())(logits[None])
    assert found.tolist() == [pytest.approx(expected, abs=1e-12)]

    padded = torch.where(torch.arange(100)[:, None] % 3 == 0, -100, targets)
    keep = padded[:, 0] != -100
    found = f1(logits, padded, average, ignore_index=-100)
    assert found == f1(logits[keep], targets[keep], average)


def test_averages_over_the_two_classes_of_binary_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 5, generator=generator)
    targets = (torch.randn(8, 5, generator=generator) > 0).long()
    expected = f1(logits.flatten(), targets.flatten(), "macro")
    assert f1(logits, targets, "macro", classes=2) == expected
    assert f1(logits[:, :, None], targets[:, :, None], "macro") == expected
    column = f1(logits[:, :1], targets[:, :1], "macro")
    assert column == f1(logits[:, 0], targets[:, 0], "macro")


def test_multi_label_targets_are_zeros_and_ones() -> None:
    for wrong in (2, -1):
        with pytest.raises(ValueError, match="none of the classes"):
            f1(torch.ones(2, 3), torch.tensor([[0, 1, 0], [1, wrong, 0]]), "macro")
