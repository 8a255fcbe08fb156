"""What a ``LightningModule`` or ``LightningDataModule`` defines itself, and what is refused."""

from __future__ import annotations

import functools
import inspect
from typing import Any

_BASES = ("LightningModule", "LightningDataModule")


def overrides(module: Any, name: str) -> bool:
    """Whether a module defines a method itself: in its class, or as an attribute.

    ``pytorch_lightning`` is not imported: the base is found by its name, so that modules of the
    package ``lightning`` are modules too.

    >>> import pytorch_lightning as pl
    >>> class Model(pl.LightningModule):
    ...     def training_step(self, batch, batch_idx): ...
    >>> overrides(Model(), "training_step"), overrides(Model(), "validation_step")
    (True, False)
    """
    kind = type(module)
    base = next((each for each in kind.__mro__ if each.__name__ in _BASES), object)
    inherited = getattr(base, name, None)
    return name in vars(module) or getattr(kind, name, None) is not inherited


def is_lightning(value: Any, base: str = "LightningModule") -> bool:
    """Whether a value is a ``LightningModule``, or of another base class of this name."""
    return any(each.__name__ == base for each in type(value).__mro__)


BY_HAND = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "on_train_epoch_start",
)
"""Hooks inside of a training step, for which it is taken apart."""

_REFUSED = {
    "optimizer_step": "A warm-up is a scheduler with interval 'step' in configure_optimizers; "
    "steps at other times are manual optimization (automatic_optimization = False).",
    "optimizer_zero_grad": "Gradients are values here, and none is left over. Leave it out.",
    "backward": "What changes gradients is on_after_backward, or a stage after fl.grad.",
    "lr_scheduler_step": "A learning rate is a function of the step here. Return a scheduler with "
    "torch's own step() from configure_optimizers.",
    "configure_sharded_model": "Shard the step: fl.shard(run.step, fl.mesh(), 'zero3').",
    "on_save_checkpoint": "What is to be saved is a buffer (register_buffer): all of the state is "
    "in a checkpoint.",
    "on_load_checkpoint": "A checkpoint of this run restores all of the state; one of Lightning's "
    "is read by fl.lightning.read.",
    "on_train_start": "What it prepares goes into __init__ or setup.",
    "on_fit_start": "What it prepares goes into __init__ or setup.",
    "on_train_end": "Do it after fl.fit, with the state that it returns.",
    "on_fit_end": "Do it after fl.fit, with the state that it returns.",
    "on_validation_model_train": "Each call has its mode here: training for training_step, "
    "evaluation for validation_step.",
    "on_validation_model_eval": "Each call has its mode here: training for training_step, "
    "evaluation for validation_step.",
}


def refuse(module: Any) -> None:
    """Refuse hooks that have no meaning here, each with what takes its place.

    Raises:
        TypeError: It is no ``LightningModule``, or has no ``training_step``.
        ValueError: It defines such a hook.
    """
    if isinstance(module, type):
        raise TypeError(
            f"fl.lightning.step takes a LightningModule, got the class {module.__name__}. Give it "
            f"an instance: fl.lightning.step({module.__name__}(...))."
        )
    name = type(module).__name__
    if not is_lightning(module):
        raise TypeError(
            f"fl.lightning.step takes a LightningModule, got {name}. For a plain nn.Module write "
            "the loss as a function: fl.pipe(loss, fl.grad, fl.update(optimizer))."
        )
    for needed in ("training_step", "configure_optimizers"):
        if not overrides(module, needed):
            raise TypeError(f"{name} has no {needed}, so it cannot be trained. Define it.")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            f"{name}.training_step takes dataloader_iter and draws batches itself. Here the loop "
            "draws them, and the cursor in the state counts them: take (batch, batch_idx)."
        )
    for hook, instead in _REFUSED.items():
        if overrides(module, hook):
            raise ValueError(f"{name} defines {hook}, which has no meaning here. {instead}")


def arguments_for(method: Any, batch: Any, batch_idx: Any, dataloader_idx: Any = None) -> list[Any]:
    """The arguments of a step: a batch, and its numbers if the method takes them.

    Args:
        method: ``training_step``, ``validation_step`` or another, of a module.
        batch: The batch.
        batch_idx: Its number in the epoch.
        dataloader_idx: The number of its loader; None if there is one loader.
    """
    names, any_number = _taken(getattr(method, "__func__", method))
    given = [batch]
    if any_number or "batch_idx" in names or len(names) > 2:
        given.append(batch_idx)
        if dataloader_idx is not None and (any_number or len(names) > 3):
            given.append(dataloader_idx)
    return given


@functools.lru_cache(maxsize=256)
def _taken(function: Any) -> tuple[tuple[str, ...], bool]:
    """The names of the arguments, with self; and whether it takes any number of them."""
    found = inspect.signature(function).parameters.values()
    names = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(names), any([p.kind is p.VAR_POSITIONAL for p in found])
