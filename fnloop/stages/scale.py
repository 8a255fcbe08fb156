"""``scale``: multiply a hyperparameter from outside, between two steps."""

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
    """Multiply a reported hyperparameter, from the next step on: a state with another multiplier.

    Args:
        state: A state that went through `init` of a step with `update`.
        hyperparameter: As it is reported: ``"adamw.lr"``, under `fl.optim.by_label`
            ``"head.adamw.lr"``.
        factor: On top of earlier factors; a learning rate times 0 freezes: the parameters stay as
            they are, without decay, and so does the optimizer's memory of them.
        to: The whole multiplier, in place of a factor: ``to=1.0`` undoes all earlier ones.
        name: The slot of the update.

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
        raise TypeError("scale takes a factor, or to=, one of the two.")
    old = memory["scale"][hyperparameter]
    new = old * factor if to is None else torch.full_like(old, to)
    return state.put(name, {**memory, "scale": {**memory["scale"], hyperparameter: new}})
