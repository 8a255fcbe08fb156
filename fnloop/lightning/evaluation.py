"""``validation_step``, ``test_step``, ``predict_step`` with their hooks, over all of the data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch

from fnloop._torch.random import seeded
from fnloop.data.bundle import sets_of
from fnloop.data.lent import Lent
from fnloop.data.limiting import SMOKE, limit
from fnloop.data.sources import as_source, rest_of_epoch
from fnloop.effects.activity import Activity
from fnloop.lightning.lasting import Lasting, with_lasting
from fnloop.lightning.logged import Log
from fnloop.lightning.metric_objects import MetricObjects, to_device
from fnloop.lightning.overridden import arguments_for, overrides
from fnloop.lightning.standing import Facts, Position, Standing, attached
from fnloop.lightning.training_loss import ByIdentity, transferred
from fnloop.stages.callback import Callback
from fnloop.trees.nodes import static, tree
from fnloop.values.averaged import choose_buffers, choose_params
from fnloop.values.key import fold
from fnloop.values.member_metrics import beside
from fnloop.values.metrics import Last
from fnloop.values.placing import whole_state
from fnloop.values.stacked import data_key, each_member
from fnloop.values.state import State

Kind = Literal["validation", "test", "predict"]
_FLAGS = {"validation": "validating", "test": "testing", "predict": "predicting"}


class Evaluated(NamedTuple):
    """What an evaluation found.

    Attributes:
        metrics: By name.
        outputs: Of ``predict_step``.
        lasting: What the module has changed meanwhile.
    """

    metrics: dict[str, Any]
    outputs: list[Any]
    lasting: Lasting


def evaluated(
    kind: Kind,
    state: State,
    data: Any,
    facts: Facts,
    batches: int | None = None,
    params: str | None = None,
) -> Evaluated:
    """Run a module's own evaluation on a copy with the parameters of `state`.

    Lists, counters and metric objects on ``self`` last for the evaluation, and go with the copy.

    Args:
        kind: Which of its steps.
        state: Of a single run.
        data: One loader, or several by name.
        facts: Of the run.
        batches: Only so many of each loader, the first.
        params: A slot to take the parameters from.
    """
    module = state.skeleton.build(choose_params(state, params), choose_buffers(state, params))
    module.eval()
    MetricObjects(module)
    to_device(module, state.step.device)
    lasting = Lasting(module, state, f"The {kind} of {facts.who}", modes=False)
    log = Log()
    trainer = Standing(facts, Position.after(state, facts), training=False)
    vars(trainer)[_FLAGS[kind]] = True
    sets = list((sets_of(data) or {"": data}).values())
    outputs: list[Any] = []
    seed = fold(int(state.key), int(state.calls), kind)
    with (
        torch.no_grad(),
        seeded(seed, state.step.device),
        attached(module, trainer, state.step.device, log=log.log),
    ):
        _hook(module, f"on_{kind}_start")
        _hook(module, f"on_{kind}_epoch_start")
        lasting.begin()
        for i, part in enumerate(sets):
            several = i if len(sets) > 1 else None
            log.suffix = "" if several is None else f"/dataloader_idx_{i}"
            source = as_source(part)
            pairs = rest_of_epoch(source, data_key(state), kind == "predict")
            for j, (_, batch) in enumerate(itertools.islice(pairs, batches)):
                lent = Lent(source, batch)
                outputs.append(_one(kind, module, batch, j, several, log, state))
                lent.check(f"{facts.who}.{kind}_step")
                if kind != "predict":
                    outputs.clear()
        log.suffix, log.batch = "", None
        trainer.callback_metrics = log.values()
        _hook(module, f"on_{kind}_epoch_end")
        _hook(module, f"on_{kind}_end")
        found = {name: Last(metric.compute()) for name, metric in log.objects.items()}
    return Evaluated({**log.metrics, **found}, outputs, lasting)


def metrics_of(
    kind: Kind,
    state: State,
    data: Any,
    facts: Facts,
    batches: int | None = None,
    params: str | None = None,
) -> dict[str, Any]:
    """The metrics of an evaluation; of a population, those of its members side by side."""
    state = whole_state(state)
    found = [
        evaluated(kind, own, data, facts, batches, params).metrics for own in each_member(state)
    ]
    return beside(found, state)


def _one(
    kind: str, module: Any, batch: Any, index: int, several: int | None, log: Log, state: State
) -> Any:
    """One batch of the loader `several`, or of the only one."""
    batch = transferred(module, batch, state, several or 0)
    log.batch = batch
    idx = (index,) if several is None else (index, several)
    _hook(module, f"on_{kind}_batch_start", batch, *idx)
    step = getattr(module, f"{kind}_step")
    output = step(*arguments_for(step, batch, index, several))
    _hook(module, f"on_{kind}_batch_end", output, batch, *idx)
    return output


def _hook(module: Any, name: str, *arguments: Any) -> None:
    if overrides(module, name):
        getattr(module, name)(*arguments)


@tree
class Validation(Callback):
    """Adds what ``validation_step`` and its hooks log, under the names that the module gives.

    Parameters and buffers that these change are the state's from then on.

    Attributes:
        facts: Of the run.
        data: The loaders, in a `ByIdentity`.
    """

    label: ClassVar[str] = "validation"
    reads: ClassVar[bool] = False
    only_evaluates: ClassVar[bool] = True
    facts: Facts = static()
    data: Any = static()

    @property
    def slot(self) -> None:
        return None

    def adds(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Any]:
        added = metrics_of("validation", state, self.data.value, self.facts, 1)
        for name in added:
            if name in metrics:
                raise ValueError(
                    f"{self.facts.who} logs {name!r} in validation, and there is a metric of this "
                    "name from training. Log one of them under another name."
                )
        return added

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
        whole = whole_state(state)
        with Activity("validation", None):
            found = [
                evaluated("validation", own, self.data.value, self.facts)
                for own in each_member(whole)
            ]
        metrics = beside([each.metrics for each in found], whole)
        return with_lasting(state, [each.lasting for each in found]), {**x, **metrics}

    def smoke(self) -> Self:
        sets = sets_of(self.data.value)
        few: Any = (
            limit(self.data.value, SMOKE)
            if sets is None
            else {name: limit(part, SMOKE) for name, part in sets.items()}
        )
        return dataclasses.replace(self, data=ByIdentity(few))

    def describe(self) -> str:
        return f"{self.facts.who}.validation_step"


def predicted(state: State, data: Any, facts: Facts) -> Iterator[Any]:
    """The outputs of ``predict_step``, one for each batch."""
    yield from evaluated("predict", whole_state(state), data, facts).outputs
