from __future__ import annotations

import pytest
import sklearn.metrics
import torch
from torch import Tensor

from fnloop.metrics.accuracies import accuracy, top_k_accuracy
from fnloop.values.merging import merge


def example(n: int = 200, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


def test_multiclass_agrees_with_sklearn() -> None:
    logits, targets = example()
    expected = sklearn.metrics.accuracy_score(targets, logits.argmax(1))
    assert float(accuracy(logits, targets)) == pytest.approx(expected, abs=1e-12)
    assert float(accuracy(logits.argmax(1), targets)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_agrees_with_sklearn(k: int) -> None:
    logits, targets = example()
    expected = sklearn.metrics.top_k_accuracy_score(targets, logits, k=k, labels=range(7))
    assert float(top_k_accuracy(logits, targets, k)) == pytest.approx(expected, abs=1e-12)


def test_binary_logits_and_several_labels() -> None:
    logits, targets = torch.tensor([[2.0, -1.0], [-3.0, 4.0]]), torch.tensor([[1, 1], [0, 0]])
    for form in (targets, targets.bool(), targets.float()):
        assert float(accuracy(logits, form)) == 0.5
    assert accuracy(logits, targets).weight == 4


def test_layout_is_that_of_cross_entropy() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[:, 1] = 1.0
    targets = torch.ones(2, 4, dtype=torch.int64)
    targets[0, 0] = 2
    assert float(accuracy(logits, targets)) == 7 / 8
    assert float(top_k_accuracy(logits, targets, 1)) == 7 / 8
    assert float(accuracy(torch.tensor([0.0, 5.0]), torch.tensor(1))) == 1.0


def test_ignored_targets_do_not_count() -> None:
    logits, targets = example()
    masked = targets.clone()
    masked[::3] = -100
    keep = masked != -100
    metric = accuracy(logits, masked, ignore_index=-100)
    assert float(metric) == float(accuracy(logits[keep], targets[keep]))
    assert float(metric.weight) == int(keep.sum())
    best = top_k_accuracy(logits, masked, 2, ignore_index=-100)
    assert float(best) == float(top_k_accuracy(logits[keep], targets[keep], 2))


def test_merge_of_ragged_parts_is_the_whole() -> None:
    logits, targets = example()
    sizes = [1, 120, 30, 49]
    pairs = zip(logits.split(sizes), targets.split(sizes), strict=True)
    merged = merge({"a": accuracy(x, y)} for x, y in pairs)["a"]
    assert float(merged) == float(accuracy(logits, targets))
    assert merged.weight == 200


def test_is_detached_and_works_under_vmap() -> None:
    logits, targets = example()
    metric = accuracy(logits.requires_grad_(), targets)
    assert not metric.total.requires_grad  # pyright: ignore
    many = torch.stack([logits.detach(), -logits.detach()])
    totals = torch.func.vmap(lambda x: accuracy(x, targets).value())(many)
    assert torch.as_tensor(totals).tolist() == [float(accuracy(x, targets)) for x in many]


def test_nan_logits_are_not_all_right() -> None:
    logits, targets = torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0])
    assert float(top_k_accuracy(logits, targets, 1)) < 1
    assert float(accuracy(logits, targets)) < 1


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5, 3\) do not fit .*\(2, 5\).*movedim"):
        accuracy(torch.zeros(2, 5, 3), torch.zeros(2, 5).long())
    with pytest.raises(ValueError, match=r"one class, .*squeeze\(1\)"):
        accuracy(torch.zeros(4, 1), torch.zeros(4).long())
    with pytest.raises(ValueError, match="do not fit"):
        accuracy(torch.zeros(4, 3), torch.zeros(5).long())
    with pytest.raises(ValueError, match="k is from 1 to the number of classes, 3; got 5"):
        top_k_accuracy(torch.zeros(4, 3), torch.zeros(4).long())
    with pytest.raises(ValueError, match="one logit for each class"):
        top_k_accuracy(torch.zeros(4), torch.zeros(4).long(), 1)
