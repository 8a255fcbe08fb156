"""The two kinds of steps that a module becomes."""

from __future__ import annotations

from typing import Any

import torch

from fnloop.lightning.by_hand import ByHand
from fnloop.lightning.callbacks_given import Finetuning
from fnloop.lightning.handled_call import HandPlan
from fnloop.lightning.metric_objects import MetricObjects
from fnloop.lightning.overridden import BY_HAND, overrides
from fnloop.lightning.standing import Facts
from fnloop.lightning.training_loss import ByIdentity, TrainingStep
from fnloop.lightning.translated import Owned
from fnloop.names.elsewhere import PRECISIONS
from fnloop.optim.base import Optimizer
from fnloop.optim.chains import chain
from fnloop.optim.transforms import clip_by_norm, clip_by_value
from fnloop.schedules.by_count import by_epoch
from fnloop.stages.accumulate import accumulate
from fnloop.stages.amp import amp
from fnloop.stages.base import StepStage
from fnloop.stages.grad import grad
from fnloop.stages.pipe import pipe
from fnloop.stages.update import update


def piped(
    own: Any,
    owned: Owned,
    facts: Facts,
    objects: ByIdentity,
    precision: Any,
    finetuning: Finetuning | None,
) -> StepStage:
    """A module whose steps are: loss, gradient, update."""
    loss = TrainingStep(facts, objects, overrides(own, "on_train_epoch_end"))
    trained = [name for name, p in own.named_parameters() if p.requires_grad]
    only = None if set(owned.names) == set(trained) else owned.names
    frozen = None
    if finetuning is not None and finetuning.epoch:
        frozen = by_epoch({0: "backbone", finetuning.epoch: None})
    stages: list[Any] = [
        grad if only is None and frozen is None else grad(only=only, frozen=frozen)
    ]
    if facts.accumulate > 1:
        stages.append(accumulate(facts.accumulate))
    name: Any = PRECISIONS.get(str(precision), precision)
    if name not in (None, "fp32"):
        stages.append(amp(name))
    return pipe(loss, *stages, update(_clipped(owned.optimizer, facts)))


def _clipped(optimizer: Optimizer, facts: Facts) -> Optimizer:
    if not facts.clip:
        return optimizer
    clip = clip_by_value if facts.clip_by == "value" else clip_by_norm
    return chain(clip(facts.clip), optimizer)


def by_hand(
    own: Any, owned: list[Owned], facts: Facts, objects: ByIdentity, precision: Any, manual: bool
) -> StepStage:
    """A module that is run as it is written."""
    hooks = [hook for hook in BY_HAND if overrides(own, hook)]
    why = "steps its optimizers itself" if manual else f"defines {', '.join(hooks)}"
    if facts.accumulate > 1:
        raise ValueError(
            f"{facts.who} {why}, so accumulate_grad_batches= has no meaning for it, as in "
            "Lightning with manual optimization. Step the optimizer at every n-th batch in "
            "training_step; gradients that are left are in the state."
        )
    if facts.clip and manual:
        raise ValueError(
            f"{facts.who} {why}, so gradient_clip_val= would clip nothing, as in Lightning with "
            "manual optimization. Clip in training_step, after manual_backward: "
            f"self.clip_gradients(optimizer, gradient_clip_val={facts.clip:g})."
        )
    if manual and overrides(own, "on_train_epoch_end"):
        _check_epoch_end(facts, objects.value)
    dtypes = {"None": None, "32": None, "32-true": None, "bf16-mixed": torch.bfloat16}
    if str(precision) not in dtypes:
        raise ValueError(
            f"{facts.who} {why}, and then precision is '32-true' or 'bf16-mixed', got "
            f"{precision!r}."
        )
    keeps = overrides(own, "on_train_epoch_end") and not manual
    optimizers = tuple([each.optimizer for each in owned])
    plan = HandPlan(
        tuple(owned),
        objects.value,
        facts,
        manual,
        dtypes[str(precision)],
        keeps,
        overrides(own, "on_train_epoch_start"),
    )
    return ByHand(optimizers, ByIdentity(plan))


def _check_epoch_end(facts: Facts, objects: MetricObjects) -> None:
    """Check that the hook can be called with the last batch of an epoch, where it is a step."""
    if facts.per_epoch is None:
        raise ValueError(
            f"{facts.who} defines on_train_epoch_end, and when an epoch ends is unknown. Give the "
            "data, or data that knows its length: fl.lightning.step(module, data)."
        )
    if objects.templates:
        raise ValueError(
            f"{facts.who} steps its optimizers itself, and has on_train_epoch_end and metric "
            f"objects ({', '.join(objects.templates)}), which would have seen the last batch only. "
            "Log them in training_step, self.log(name, self.metric), and leave out the hook."
        )
