"""Tests of `fnloop._torch.constants`: what steps report stays right, whatever is done to it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

import fnloop as fl
from fnloop._torch.constants import constant

CPU = torch.device("cpu")


def mean_square(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def reported(metrics: dict[str, Any]) -> dict[str, float]:
    own = {name: float(metrics[name]) for name in ("skipped", "sgd.lr")}
    return {**own, "weight": float(metrics["loss"].weight)}


RIGHT = {"skipped": 0.0, "sgd.lr": 0.25, "weight": 3.0}


def pipeline() -> Any:
    return fl.pipe(mean_square, fl.grad, fl.update(fl.optim.sgd(0.25)))


def test_what_a_step_reported_may_be_written_to() -> None:
    step = pipeline()
    state, batch = step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2)
    for _ in range(3):
        state, metrics = step(state, batch)
        assert reported(metrics) == RIGHT
        metrics["skipped"].total.add_(1)
        metrics["sgd.lr"].latest.mul_(2)
        metrics["loss"].weight.zero_()


def test_what_a_step_reported_may_be_differentiated() -> None:
    step = pipeline()
    state, batch = step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2)
    state, metrics = step(state, batch)
    metrics["sgd.lr"].latest.requires_grad_()
    state, metrics = step(state, batch)
    assert not metrics["sgd.lr"].latest.requires_grad


@fl.tree
class Keeps(fl.base.StepStage):
    """Puts what the step in it reports into the state, as it is."""

    label: ClassVar[str] = "keeps"
    wraps: ClassVar[Any] = "step"
    inner: Any
    name: str = "keeps"

    def init_state(self, state: Any) -> dict[str, Any]:
        return {
            "weight": torch.tensor(0),
            "lr": torch.tensor(0.0, dtype=torch.float64),
            "skipped": torch.tensor(0),
        }

    def __call__(self, state: Any, x: Any) -> Any:
        after, metrics = self.inner(state, x)
        own = {
            "weight": metrics["loss"].weight,
            "lr": metrics["sgd.lr"].latest,
            "skipped": metrics["skipped"].total,
        }
        return after.put(self.name, own), metrics


def test_a_donating_step_does_not_write_to_it() -> None:
    step = fl.pipe(pipeline(), Keeps)
    state, batch = step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2)
    other = torch.ones(5, 2)
    donating = fl.compile(step, donate=True, backend="aot_eager")
    for _ in range(3):
        state, metrics = step(state, batch)
        assert reported(metrics) == RIGHT
        state, _ = donating(state, other)


def test_only_plain_tensors_are_kept() -> None:
    with torch.inference_mode():
        assert constant(12345, torch.int64, CPU).is_inference()
    one = constant(12345, torch.int64, CPU)
    assert not one.is_inference()
    assert constant(12345, torch.int64, CPU) is one
    assert constant(12345, torch.float64, CPU).dtype is torch.float64
    inside = torch.func.vmap(lambda x: x + constant(12345, torch.int64, CPU))(torch.zeros(2))
    assert inside.tolist() == [12345.0, 12345.0]


def test_few_are_kept() -> None:
    from fnloop._torch import constants

    for value in range(3 * constants._MOST):
        constant(value, torch.int64, CPU)
    assert len(constants._MADE) <= constants._MOST
