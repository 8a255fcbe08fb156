from __future__ import annotations

from typing import Any

import pytest
import sklearn.metrics
import torch
from torch import Tensor

from fnloop.metrics.confusion_matrix import Confusion, confusion
from fnloop.values.merging import merge, numbers


def example(classes: int = 6) -> tuple[Tensor, Tensor]:
    """Labels of all but the last two classes; predictions of all but the last."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(150, classes, generator=generator)
    logits[:, -1] = -100
    return logits, torch.randint(classes - 2, (150,), generator=generator)


def test_matrix_agrees_with_sklearn() -> None:
    logits, targets = example()
    expected = sklearn.metrics.confusion_matrix(targets, logits.argmax(1), labels=range(6))
    assert confusion(logits, targets).matrix.tolist() == expected.tolist()
    assert confusion(logits.argmax(1), targets, classes=6).matrix.tolist() == expected.tolist()
    assert confusion(logits, targets).matrix.dtype == torch.int64


def test_value_agrees_with_sklearn() -> None:
    logits, targets = example()
    y, p = targets.numpy(), logits.argmax(1).numpy()
    value = {name: float(x) for name, x in confusion(logits, targets).value().items()}
    zero: Any = 0.0
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        y, p, average="macro", zero_division=zero
    )
    accuracy = sklearn.metrics.accuracy_score(y, p)
    expected = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    assert value == pytest.approx(expected, abs=1e-12)


def test_scores_by_class_agree_with_sklearn() -> None:
    logits, targets = example()
    metric = confusion(logits, targets)
    zero: Any = 0.0
    expected: Any = sklearn.metrics.precision_recall_fscore_support(
        targets, logits.argmax(1), labels=range(6), zero_division=zero
    )
    for ours, theirs in zip((metric.precision, metric.recall, metric.f1), expected, strict=False):
        assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-12)


def test_merge_of_parts_is_the_whole() -> None:
    logits, targets = example()
    parts = zip(logits.split(37), targets.split(37), strict=True)
    merged = merge({"c": confusion(x, y)} for x, y in parts)["c"]
    assert merged == confusion(logits, targets)
    assert merged.merge(merged.empty()) == merged


def test_binary_ignored_and_dense() -> None:
    assert confusion(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0])).matrix.tolist() == [
        [1, 1],
        [0, 0],
    ]
    logits = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]])  # [1, 2 classes, 3 places]
    targets = torch.tensor([[1, 255, 0]])
    assert confusion(logits, targets, ignore_index=255).matrix.tolist() == [[0, 1], [0, 1]]


def test_numbers_show_every_score() -> None:
    shown = numbers({"val": Confusion(torch.tensor([[3, 1], [0, 4]]))})
    assert shown["val/accuracy"] == 7 / 8
    assert set(shown) == {"val/accuracy", "val/precision", "val/recall", "val/f1"}


def test_works_under_vmap() -> None:
    logits, targets = example()
    many = torch.stack([logits, logits.flip(0)])
    matrices = torch.func.vmap(lambda x: confusion(x, targets).matrix)(many)
    for matrix, one in zip(matrices, many, strict=True):
        assert torch.equal(matrix, confusion(one, targets).matrix)


def test_labels_need_the_number_of_classes() -> None:
    with pytest.raises(ValueError, match="give classes="):
        confusion(torch.tensor([0, 1]), torch.tensor([0, 1]))
