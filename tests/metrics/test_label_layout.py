from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fnloop.metrics.accuracies import accuracy, top_k_accuracy
from fnloop.metrics.confusion_matrix import confusion
from fnloop.metrics.f_score import f1

METRICS: list[Callable[..., Any]] = [accuracy, f1, confusion]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_float_targets_of_many_classes_are_refused(metric: Any, dtype: torch.dtype) -> None:
    targets = torch.arange(6) % 3
    for logits in (torch.zeros(6, 3), torch.zeros(6, 3, 2)):
        labels = targets if logits.ndim == 2 else targets[:, None].expand(6, 2)
        metric(logits, labels)
        with pytest.raises(ValueError, match=r"of 3 classes are integers.*targets\.long\(\)"):
            metric(logits, labels.to(dtype))


@pytest.mark.parametrize("metric", METRICS)
def test_float_targets_are_refused_without_looking_at_them(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"targets\.long\(\)"):
        metric(torch.zeros(2, 3, device="meta"), torch.zeros(2, device="meta"))


@pytest.mark.parametrize("metric", METRICS)
def test_float_targets_of_two_classes_have_threshold_one_half(metric: Any) -> None:
    targets = torch.tensor([0.0, 1.0, 0.7, 0.5, 1.0])
    labels = torch.tensor([0, 1, 1, 0, 1])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert metric(logits, targets) == metric(logits, labels)
    margins = logits[:, 1] - logits[:, 0]
    assert metric(margins, targets) == metric(margins, labels)
    assert metric(margins[:, None], targets[:, None]) == metric(margins[:, None], labels[:, None])


def test_float_targets_of_predicted_labels_are_class_numbers() -> None:
    guesses, targets = torch.tensor([2, 1, 1, 0]), torch.tensor([2, 2, 1, 0])
    assert float(accuracy(guesses, targets.float())) == 3 / 4
    for metric in (f1, confusion):
        assert metric(guesses, targets.float(), classes=3) == metric(guesses, targets, classes=3)
    binary = torch.tensor([True, False, True])
    assert float(accuracy(binary, torch.tensor([255.0, 0.0, 1.0]))) == 1
    assert float(accuracy(binary.long(), torch.tensor([1.0, 0.0, 0.7]))) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_float_targets_can_be_ignored(metric: Any) -> None:
    logits, targets = torch.tensor([3.0, -1.0, 2.0, -2.0]), torch.tensor([1.0, -100.0, 0.0, 1.0])
    keep = targets != -100
    found = metric(logits, targets, ignore_index=-100)
    assert torch.equal(_number(found), _number(metric(logits[keep], targets[keep])))


@pytest.mark.parametrize("metric", [*METRICS, top_k_accuracy])
def test_bytes_are_not_ignored_by_their_remainder(metric: Any) -> None:
    logits = torch.zeros(2, 200)
    targets = torch.tensor([156, 0], dtype=torch.uint8)  # 156 is -100 of 8 bits
    found = metric(logits, targets, ignore_index=-100)
    assert torch.equal(_number(found), _number(metric(logits, targets.long())))


@pytest.mark.parametrize("metric", [f1, confusion])
def test_fewer_classes_than_the_logits_have_are_refused(metric: Any) -> None:
    logits, targets = torch.eye(4)[[3, 0, 1]], torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match=r"\(3, 4\) predict 4 classes, got classes=3"):
        metric(logits, targets, classes=3)
    assert _number(metric(logits, targets, classes=5)) == _number(metric(logits, targets))


@pytest.mark.parametrize("metric", [f1, confusion])
@pytest.mark.parametrize("classes", [1, 3])
def test_binary_logits_have_two_classes(metric: Any, classes: int) -> None:
    logits, targets = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1])
    with pytest.raises(ValueError, match=r"binary logits, got classes=.*predictions\.long\(\)"):
        metric(logits, targets, classes=classes)
    assert metric(logits, targets % 2, classes=2) == metric(logits, targets % 2)


OUTSIDE = [
    ([0, 3, 1], [0, 1, 2]),
    ([0, -1, 1], [0, 1, 2]),
    ([0, 1, 2], [0, 3, 1]),
    ([0, 1, 2], [0, -1, 1]),
    ([0, 3, 0], [0, 0, 0]),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # Inductor imports torch.jit
@pytest.mark.parametrize("metric", [f1, confusion])
@pytest.mark.parametrize(("guesses", "targets"), OUTSIDE)
@pytest.mark.parametrize("how", ["eager", "vmap", "compiled"])
def test_a_label_of_no_class_is_an_error(metric: Any, guesses: Any, targets: Any, how: str) -> None:
    def counts(guesses: torch.Tensor, targets: torch.Tensor) -> Any:
        made = metric(guesses, targets, classes=3)
        return made.matrix if metric is confusion else (made.right, made.predictions, made.targets)

    run: Any = {
        "eager": counts,
        "vmap": torch.func.vmap(counts),
        "compiled": torch.compile(counts, fullgraph=True),
    }[how]
    labels = [torch.tensor(x) for x in (guesses, targets)]
    if how == "vmap":
        labels = [torch.stack([x.clamp(0, 2), x]) for x in labels]
    run(*(x.clamp(0, 2) for x in labels))
    with pytest.raises((ValueError, IndexError), match=r"none of the classes|out of bounds"):
        run(*labels)


@pytest.mark.parametrize("metric", [f1, confusion])
def test_predictions_at_ignored_targets_may_be_anything(metric: Any) -> None:
    guesses, targets = torch.tensor([0, 7, -1, 2]), torch.tensor([0, 9, 9, 1])
    found = metric(guesses, targets, classes=3, ignore_index=9)
    assert found == metric(guesses[[0, 3]], targets[[0, 3]], classes=3)


def _number(metric: Any) -> torch.Tensor:
    value = metric.value()
    return value["accuracy"] if isinstance(value, dict) else torch.as_tensor(value)
