"""``scale``: multiply a hyperparameter between two steps."""

from __future__ import annotations

import torch

from fnloop.values.state import State


def scale(
    state: State,
    hyperparameter: str,
    factor: float | None = None,
    to: float | None = None,
    name: str = "update",
) -> State:
    """Multiply a reported hyperparameter from the next step on. Returns a new state.

    Args:
        state: A state initialized for a step with `update`.
        hyperparameter: Its reported name: ``"adamw.lr"``, or ``"head.adamw.lr"`` under
            `fl.optim.by_label`.
        factor: Multiplies the current multiplier. A learning rate times 0 freezes the parameters,
            without weight decay, and their optimizer state.
        to: Sets the multiplier instead: ``to=1.0`` undoes all earlier factors.
        name: Slot of the update.

    Raises:
        KeyError: There is no such slot or hyperparameter.
        TypeError: Both or neither of `factor` and `to` are given.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = scale(step.init(torch.nn.Linear(2, 1)), "sgd.lr", 0.5)
    >>> float(step(state, torch.ones(3, 2))[1]["sgd.lr"])
    0.05
    """
    memory = state[name]
    if hyperparameter not in memory["scale"]:
        known = ", ".join(sorted(memory["scale"])) or "none"
        raise KeyError(
            f"There is no hyperparameter {hyperparameter!r} to scale; there are: {known}."
        )
    if (factor is None) == (to is None):
        raise TypeError("scale takes either a factor or to=, exactly one of the two.")
    old = memory["scale"][hyperparameter]
    new = old * factor if to is None else torch.full_like(old, to)
    return state.put(name, {**memory, "scale": {**memory["scale"], hyperparameter: new}})
