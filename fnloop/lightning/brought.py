"""``step``: a ``LightningModule`` as a training step, with its callbacks and data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fnloop.data.bundle import Data
from fnloop.data.grouping import group
from fnloop.data.sources import as_source
from fnloop.lightning.callbacks_given import Finetuning, callbacks_of
from fnloop.lightning.configured import Configured, Scheduled, configured, is_plateau
from fnloop.lightning.datamodules import completed, side_by_side
from fnloop.lightning.datamodules import data as data_of
from fnloop.lightning.evaluation import Kind, metrics_of, predicted
from fnloop.lightning.hand import clip_algorithm
from fnloop.lightning.made_steps import by_hand, piped
from fnloop.lightning.metric_objects import MetricObjects
from fnloop.lightning.overridden import BY_HAND, is_lightning, overrides, refuse
from fnloop.lightning.own_callbacks import own_callbacks
from fnloop.lightning.standing import Facts, Position, Standing, attached
from fnloop.lightning.training_loss import ByIdentity
from fnloop.lightning.translated import Owned, optimizer_of
from fnloop.names.arguments import bounded, whole
from fnloop.names.keywords import explained
from fnloop.stages.base import StepStage
from fnloop.values.merging import numbers
from fnloop.values.state import State


@dataclasses.dataclass(frozen=True)
class Brought:
    """What `fl.lightning.step` makes of a module.

    Attributes:
        step: The training step, a pipeline like any other: compile it, sweep it, shard it.
        model: A copy of the module, set up, for ``step.init``; the given one is not changed.
        data: What it trains and is validated on; None if none is known.
        callbacks: Its validation and its schedulers that watch a metric, and those that were given.
        facts: What is known of the run.
    """

    step: StepStage
    model: Any
    data: Data | None
    callbacks: tuple[Any, ...]
    facts: Facts

    def init(self, seed: int = 0) -> State:
        """The state before the first step. The weights are those of the module."""
        return self.step.init(self.model, seed)

    def validate(
        self, state: State, data: Any = None, params: str | None = None
    ) -> dict[str, float]:
        """What ``validation_step`` and its hooks log over `data`; default the validation data."""
        return self._evaluated("validation", "validate", state, data, params)

    def test(self, state: State, data: Any = None, params: str | None = None) -> dict[str, float]:
        """What ``test_step`` and its hooks log over `data`; default the test data."""
        return self._evaluated("test", "test", state, data, params)

    def predict(self, state: State, data: Any = None) -> Iterator[Any]:
        """The outputs of ``predict_step``, one for each batch."""
        return predicted(state, self._part("predict", data), self.facts)

    def _evaluated(
        self, kind: Kind, part: str, state: State, data: Any, params: str | None
    ) -> dict[str, float]:
        given = self._part(part, data)
        return numbers(metrics_of(kind, state, given, self.facts, params=params))

    def _part(self, part: str, data: Any) -> Any:
        given = self.data if data is None else data
        found = getattr(given, part) if isinstance(given, Data) else given
        if found is None:
            raise ValueError(f"There is no data to {part}: give it, run.{part}(state, data).")
        return found


_ACCUMULATED = whole(1)._replace(
    fix="A number that changes is a stage of your own pipeline: "
    "fl.accumulate(fl.schedules.by_epoch({0: 1, 4: 2}))."
)


@explained
def step(
    module: Any,
    data: Any = None,
    epochs: Annotated[int, whole(1)] | None = None,
    gradient_clip_val: Annotated[float, bounded(0)] | None = None,
    gradient_clip_algorithm: str | None = "norm",
    accumulate_grad_batches: Annotated[int, _ACCUMULATED] = 1,
    precision: Any = None,
    callbacks: Any = (),
) -> Brought:
    """Bring a ``LightningModule`` as it is: its training step, optimizers, schedulers, validation.

    The module is copied; `print` the step to see the pipeline that it has become. Where the module
    steps its optimizers itself, or has hooks between the parts of a step, the step runs it as it
    is written, eagerly; all others compile, sweep and shard like any step.

    Args:
        module: With ``training_step`` and ``configure_optimizers``.
        data: A ``LightningDataModule``, `fl.Data`, or a training loader, beside which the module's
            own loaders validate, test and predict; default the module's own loaders. Needed for
            what counts epochs: schedulers, and ``trainer.max_epochs``.
        epochs: Of the run, if the module asks for ``trainer.estimated_stepping_batches``, or has
            a scheduler that is run in advance.
        gradient_clip_val, gradient_clip_algorithm: As those of ``Trainer``.
        accumulate_grad_batches: Batches in a step. A last step of fewer has their true mean.
        precision: As that of ``Trainer``: ``"bf16-mixed"``, ``"16-mixed"``, ``"64-true"``, ... .
        callbacks: Of Lightning (``EarlyStopping``, ``BackboneFinetuning``) or of fnloop; one, or
            several.

    Returns:
        A `Brought`.

    Raises:
        TypeError: It is no such module.
        ValueError: It has a hook that has no meaning here; the message says what takes its place.

    >>> import torch, pytorch_lightning as pl, fnloop as fl
    >>> class Line(pl.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(1, 1)
    ...     def training_step(self, batch, batch_idx):
    ...         x, y = batch
    ...         loss = (self.linear(x) - y).square().mean()
    ...         self.log("train_loss", loss)
    ...         return loss
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    >>> run = step(Line())
    >>> run.step
    pipe(
        Line.training_step,
        grad,
        update(sgd(lr=0.1)),
    )
    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> state, history = fl.fit(run.step, run.init(), fl.Batches((x, 2 * x), 8), epochs=50)
    >>> history["train_loss"][-1] < 1e-4
    True
    """
    refuse(module)
    own = copy.deepcopy(module)
    parts = _opened(own, data)
    facts = Facts(
        type(own).__name__,
        None if parts is None else as_source(parts.train).batches,
        epochs,
        accumulate_grad_batches,
        gradient_clip_val,
        clip_algorithm(gradient_clip_algorithm, "step"),
    )
    trainer = Standing(facts, Position(0, 0, 0))
    with attached(own, trainer):
        if overrides(own, "setup") and (parts is None or data is not None):
            own.setup("fit")  # else its own data has called it
        if overrides(own, "configure_model"):
            own.configure_model()
        if parts is not None and _is_loader(data):
            parts = completed(parts, own)
        configures = overrides(own, "configure_callbacks")
        listed = _listed(own.configure_callbacks()) if configures else []
        given = callbacks_of([*listed, *_listed(callbacks)], own)
        found = _configured(own, given.finetuning, facts.who)
    manual = not own.automatic_optimization
    found = [_counted(each, facts, manual) for each in found]
    if len(found) > 1 and not manual:
        raise ValueError(
            f"{facts.who}.configure_optimizers returns {len(found)} optimizers. With several the "
            "module steps them itself: self.automatic_optimization = False, and in training_step "
            "self.optimizers(), self.manual_backward(loss), optimizer.step(). Or write the turns "
            "as fl.sequence."
        )
    names = {id(p): name for name, p in own.named_parameters() if p.requires_grad}
    owned = [_owned(each, names, facts, given.finetuning) for each in found]
    objects = ByIdentity(MetricObjects(copy.deepcopy(own)))
    made = (
        by_hand(own, owned, facts, objects, precision, manual)
        if manual or any([overrides(own, hook) for hook in BY_HAND])
        else piped(own, owned[0], facts, objects, precision, given.finetuning)
    )
    plateaus = [s for each in found for s in each.schedulers if is_plateau(s)]
    after = own_callbacks(own, parts, facts, objects, plateaus, manual)
    if parts is not None and accumulate_grad_batches > 1:
        whole = parts
        parts = Data(
            train=group(whole.train, accumulate_grad_batches),
            validate=whole.validate,
            test=whole.test,
            predict=whole.predict,
        )
    return Brought(made, own, parts, (*after, *given.callbacks), facts)


def _is_loader(data: Any) -> bool:
    """Whether the data are those to train on alone."""
    return not (data is None or isinstance(data, Data) or is_lightning(data, "LightningDataModule"))


def _opened(own: Any, data: Any) -> Data | None:
    """The data, as `fl.Data`."""
    if _is_loader(data):
        prepare = own.prepare_data if overrides(own, "prepare_data") else None
        return Data(train=side_by_side(data), prepare=prepare)
    if data is None:
        return data_of(own) if overrides(own, "train_dataloader") else None
    return data if isinstance(data, Data) else data_of(data)


def _listed(callbacks: Any) -> list[Any]:
    """Callbacks, where Lightning takes one in place of several, or None."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]


def _configured(own: Any, finetuning: Finetuning | None, who: str) -> list[Configured]:
    """What the module configures; a backbone that is finetuned is frozen meanwhile."""
    backbone = [] if finetuning is None else [p for p in own.backbone.parameters()]
    frozen = [p for p in backbone if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        return configured(own.configure_optimizers(), who, not own.automatic_optimization)
    finally:
        for p in frozen:
            p.requires_grad_(True)


def _counted(each: Configured, facts: Facts, manual: bool) -> Configured:
    """The optimizer with schedulers that count its steps; or, stepped by hand, their own."""
    counted = [
        Scheduled(s.scheduler, "step") if manual else s.counted(facts.per_epoch, facts.accumulate)
        for s in each.schedulers
    ]
    return each._replace(schedulers=tuple(counted))


def _owned(
    each: Configured, names: dict[int, str], facts: Facts, finetuning: Finetuning | None
) -> Owned:
    """The optimizer as one of fnloop."""
    if finetuning is not None:
        return finetuning.optimizer(each, names, facts.steps, facts.epochs)
    return optimizer_of(each, names, facts.steps, facts.epochs)
