"""The callbacks that a module comes with: validation, the end of an epoch, plateaus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fnloop.data.bundle import Data
from fnloop.lightning.callbacks_given import monitored
from fnloop.lightning.configured import Scheduled, floors
from fnloop.lightning.epoch_ends import EpochEnd
from fnloop.lightning.evaluation import Validation
from fnloop.lightning.overridden import overrides
from fnloop.lightning.standing import Facts
from fnloop.lightning.training_loss import ByIdentity
from fnloop.loop.every import every
from fnloop.loop.plateau import reduce_on_plateau


def own_callbacks(
    own: Any,
    parts: Data | None,
    facts: Facts,
    objects: ByIdentity,
    plateaus: Sequence[Scheduled],
    manual: bool,
) -> list[Any]:
    """Validation, then what reads its metrics."""
    found = list[Any]()
    if parts is not None and parts.validate is not None and overrides(own, "validation_step"):
        found.append(every(1, Validation(facts, ByIdentity(parts.validate)), unit="epoch"))
    if overrides(own, "on_train_epoch_end") and not manual:
        found.append(every(1, EpochEnd(facts, objects), unit="epoch"))
    for i, given in enumerate(plateaus):
        name = "reduce_on_plateau" + (f"_{i}" if i else "")
        unit: Any = given.interval
        found.append(every(given.frequency, _plateau(given, name), unit=unit))
    return found


def _plateau(given: Scheduled, name: str) -> reduce_on_plateau:
    own = given.scheduler
    return reduce_on_plateau(
        monitored(str(given.monitor)),
        factor=own.factor,
        patience=own.patience,
        threshold=own.threshold,
        threshold_mode=own.threshold_mode,
        cooldown=own.cooldown,
        min_scale=max(floors(own), default=0.0),
        mode=own.mode,
        name=name,
    )
