"""``Recipe``: everything that a training run needs, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fnloop.names.keywords import explained


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run for ``fnloop fit FILE.py``; the function ``recipe`` of the file returns it.

    The function's parameters are the command's flags, so each has a type; its docstring is their
    help. It should only build objects: other commands call it again.

    Args:
        step: A training step: ``fl.pipe(loss, fl.grad, ..., fl.update(optimizer), ...)``. For
            many processes ``fl.shard(step, fl.mesh())``, which one process runs too.
        model: Whatever ``step.init`` takes, such as an ``nn.Module`` or a function that builds one.
        data: `fl.Data`, or training data alone.
        callbacks: As for `fl.fit`.
        metrics: What to evaluate, as for `fl.evaluate`; default the step's loss.
        predict: ``(model, batch) -> output`` for ``fnloop predict``; default ``model(batch)``, or
            ``model(batch[0])`` if a batch is a tuple or list.
        epochs, steps: Length of training.
        seconds: Time limit of each call, including the last save.
        budget: Time limit of the run, over all calls. Training needs at least one of the four.
        min_epochs, min_steps: As for `fl.fit`: before them no callback stops the run.
        params: The slot whose parameters are evaluated, such as ``"ema"``; default the live ones.
        folder: The run's folder, for its configuration, curves and history, and best also its
            checkpoints. Default the folder of the first `fl.checkpoint` among the callbacks.
        seed: Seed of ``step.init``, on which all randomness depends.

    >>> import torch, fnloop as fl
    >>> from fnloop import Recipe
    >>> def recipe(lr: float = 0.1, folder: str = "runs/line") -> Recipe:
    ...     '''Fit a line.
    ...
    ...     Args:
    ...         lr: Learning rate.
    ...         folder: Of the run.
    ...     '''
    ...     loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    ...     step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr)))
    ...     x = torch.linspace(-1, 1, 32)[:, None]
    ...     data = fl.Batches((x, 2 * x + 1), batch_size=8)
    ...     checkpoint = fl.checkpoint(folder)
    ...     return Recipe(step, torch.nn.Linear(1, 1), data, [checkpoint], epochs=20, folder=folder)
    >>> recipe(folder="runs/other").folder
    'runs/other'
    """

    step: Any
    model: Any
    data: Any
    callbacks: Sequence[Any] = ()
    metrics: Callable[..., Any] | None = None
    predict: Callable[..., Any] | None = None
    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None
    budget: float | None = None
    min_epochs: int | None = None
    min_steps: int | None = None
    params: str | None = None
    folder: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        # Here, because the checks need torch, which takes seconds, and the help of a command not.
        from fnloop.cli.recipe_checks import checked

        for name, value in checked(self).items():
            object.__setattr__(self, name, value)


Recipe.__init__ = explained(Recipe.__init__)
