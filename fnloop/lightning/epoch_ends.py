"""``on_train_epoch_end`` as a callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fnloop.lightning.lasting import Lasting, with_lasting
from fnloop.lightning.logged import Log
from fnloop.lightning.metric_objects import MetricObjects, to_device
from fnloop.lightning.standing import Facts, Position, Standing, attached
from fnloop.lightning.training_loss import KEPT, ByIdentity
from fnloop.stages.callback import Callback
from fnloop.trees.nodes import static, tree
from fnloop.values.metrics import Last, Metric
from fnloop.values.placing import whole_state
from fnloop.values.state import State


@tree
class EpochEnd(Callback):
    """Calls the hook on a copy of the module, and adds what it logs.

    Metric objects of the copy are as if they had seen all batches of the epoch. Parameters and
    buffers that the hook changes are the state's from then on.

    Attributes:
        facts: Of the run.
        own: The module's metric objects, in a `ByIdentity`.
    """

    label: ClassVar[str] = "on_train_epoch_end"
    facts: Facts = static()
    own: ByIdentity = static()

    @property
    def slot(self) -> None:
        return None

    def adds(self, state: State, metrics: Mapping[str, Any]) -> None:
        return None

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        if state.step.ndim:
            raise ValueError(
                f"{self.facts.who} defines on_train_epoch_end, which is called for one model, and "
                "this is a population. Log in training_step: self.log merges over the epoch."
            )
        objects: MetricObjects = self.own.value
        whole = whole_state(state)
        module = whole.skeleton.build(whole.params, whole.buffers)
        merged = {n.removeprefix(KEPT): m for n, m in x.items() if n.startswith(KEPT)}
        for metric in merged.values():
            if not hasattr(metric, "folded"):  # says why it could not be kept
                metric.value()
        to_device(module, state.step.device)
        objects.fill(module, merged)
        log = Log()
        lasting = Lasting(module, whole, f"{self.facts.who}.on_train_epoch_end")
        position = Position.after(state, self.facts)
        seen = {n: m for n, m in x.items() if isinstance(m, Metric) and not n.startswith(KEPT)}
        trainer = Standing(self.facts, position, callback_metrics=_values(seen))
        device = state.step.device
        try:
            with torch.no_grad(), attached(module, trainer, device, log=log.log):
                module.on_train_epoch_end()
                computed = {name: Last(m.compute()) for name, m in log.objects.items()}
        except Exception as error:
            error.add_note(_EMPTY.format(who=self.facts.who))
            raise
        return with_lasting(state, [lasting]), {**x, **log.metrics, **computed}

    def describe(self) -> str:
        return f"{self.facts.who}.on_train_epoch_end"


def _values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        value = metric.value()
        if isinstance(value, (int, float, torch.Tensor)):
            found[name] = torch.as_tensor(value)
    return found


_EMPTY = (
    "fnloop: this happened in {who}.on_train_epoch_end. Lists and counters that training_step "
    "keeps on self do not last from batch to batch, so they are empty here. Log the values, "
    "self.log(name, value, on_epoch=True), or keep them in an object of torchmetrics."
)
