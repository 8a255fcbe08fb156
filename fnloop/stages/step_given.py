"""Refuse what stands in the place of a training step and is none."""

from __future__ import annotations

from typing import Any

from torch import nn

from fnloop.optim.base import Optimizer
from fnloop.stages.base import unfinished
from fnloop.stages.grad import grad
from fnloop.trees.show import short


def check_is_step(step: Any, who: str) -> None:
    """Refuse what stands in the place of a training step and is none.

    Raises:
        TypeError: It is a model, an optimizer, a class, what waits for a stage, or no function.
    """
    if isinstance(step, nn.Module):
        what = f"the model {type(step).__name__}, which goes into step.init(model)"
    elif isinstance(step, Optimizer):
        what = f"the optimizer {short(step)}"
    elif unfinished(step):
        what = f"{step.func.label}(...), which waits for the stage that it wraps"
    elif not callable(step) or isinstance(step, type) or step is grad:
        what = short(step)
    else:
        return
    raise TypeError(f"{who} takes a training step, and was given {what}. {MAKE_A_STEP}")


MAKE_A_STEP = "A step is made of a loss: fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3)))."
