"""``training_step`` as a loss: ``(model, batch, state) -> (loss, metrics)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fnloop.lightning.logged import Log, batch_size_of
from fnloop.lightning.metric_objects import MetricObjects, put_back
from fnloop.lightning.overridden import arguments_for, overrides
from fnloop.lightning.standing import Facts, Position, Standing, attached
from fnloop.trees.nodes import static, tree
from fnloop.trees.show import short
from fnloop.values.metrics import Mean, Metric
from fnloop.values.rows import UnclearRows, rows
from fnloop.values.state import State

KEPT = "kept/"
"""Begins the names of metrics that are there for ``on_train_epoch_end``."""


class ByIdentity:
    """Wraps what a stage keeps beside its numbers; compares by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


@tree
class TrainingStep:
    """Calls ``module.training_step``, and reports what it logs.

    Attributes:
        facts: Of the run.
        own: The module's metric objects.
        keeps: Whether to report the metric objects that ``on_train_epoch_end`` will ask for.
    """

    facts: Facts = static()
    own: ByIdentity = static()
    keeps: bool = False

    def __call__(self, model: Any, batch: Any, state: State) -> Any:
        position = Position.of(state, self.facts)
        objects: MetricObjects = self.own.value
        log = Log(objects.reader(model))
        trainer = Standing(self.facts, position)
        with (
            attached(model, trainer, state.step.device, log=log.log),
            put_back(model, state.step.device),
        ):
            moved = transferred(model, batch, state)
            log.batch = moved
            result = model.training_step(*arguments_for(model.training_step, moved, position.batch))
            kept = objects.updated(model) if self.keeps else {}
        metrics: dict[str, Metric] = {**log.metrics}
        metrics.update({KEPT + path: metric for path, metric in kept.items()})
        metrics.pop("loss", None)  # which is reported anyway
        return weighed(loss_in(result, self.facts.who), batch, batch_size_of(moved)), metrics

    def __repr__(self) -> str:
        return f"{self.facts.who}.training_step"


def transferred(module: Any, batch: Any, state: State, dataloader_idx: int = 0) -> Any:
    """The batch after the hooks that the module defines for its transfer."""
    device = state.step.device
    if overrides(module, "on_before_batch_transfer"):
        batch = module.on_before_batch_transfer(batch, dataloader_idx)
    if overrides(module, "transfer_batch_to_device"):
        batch = module.transfer_batch_to_device(batch, device, dataloader_idx)
    if overrides(module, "on_after_batch_transfer"):
        batch = module.on_after_batch_transfer(batch, dataloader_idx)
    return batch


def loss_in(result: Any, who: str, manual: bool = False) -> Tensor | None:
    """The loss that a ``training_step`` returned: a tensor, or a dict with one; None to skip.

    If it is `manual`, a dict need not have one.

    Raises:
        TypeError: It returned something else.
    """
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if (loss is None and (manual or result is None)) or isinstance(loss, Tensor):
        return loss
    raise TypeError(
        f"{who}.training_step returned {short(result)}; it returns the loss as a tensor, a dict "
        'with it as "loss", or None to skip the batch.'
    )


def weighed(loss: Tensor | None, batch: Any, size: int) -> Any:
    """The loss with the number of examples that it is a mean of: `size`, unless `batch` tells."""
    if loss is None:
        return Mean(0, 0)
    loss = loss.squeeze()
    try:
        if rows(batch):
            return loss
    except UnclearRows:
        pass
    return Mean(loss * size, size)
