"""Convert a model to a state, and back."""

from __future__ import annotations

import operator
from typing import Any

import torch

from fnloop._torch.random import seeded
from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.averaged import choose_buffers, choose_params
from fnloop.values.cursor import Cursor
from fnloop.values.key import fold
from fnloop.values.skeleton import dissect, is_model
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def start(model: Any, seed: int = 0) -> State:
    """The state before the first step: the model's tensors, without any stage's memory.

    Args:
        model: An ``nn.Module``; a tree (`fl.tree`) with ``__call__``; a function that builds one
            (called with torch's generators seeded by `seed`, so that the initial weights are
            reproducible); or a `State`, which is returned unchanged.
        seed: Root of all randomness; must fit an int64.

    Raises:
        TypeError: `model` is none of these, or `seed` is not an integer.
        ValueError: `seed` does not fit an int64.

    >>> start(lambda: torch.nn.Linear(2, 1), 3) == start(lambda: torch.nn.Linear(2, 1), 3)
    True
    """
    if isinstance(model, State):
        return model
    seed = as_seed(seed)
    if not is_model(model):
        if not callable(model):
            raise TypeError(
                "init takes an nn.Module, a tree (@fl.tree) with __call__, a function that "
                f"builds one, or a State; it was given {type(model).__name__}."
            )
        # torch's CPU generator uses only 32 bits of a seed, so a longer one is hashed.
        with seeded(seed if 0 <= seed < 2**32 else fold(seed, "seed")):
            built = model()
        if not is_model(built):
            raise TypeError(
                f"The model function returned {type(built).__name__}, which is not a model."
            )
        model = built
    skeleton, params, buffers = dissect(model)
    params, buffers = Tensors(params), Tensors(buffers)
    device = params.device or buffers.device or torch.device("cpu")
    return State(
        step=torch.zeros((), dtype=torch.int64, device=device),
        calls=torch.zeros((), dtype=torch.int64, device="cpu"),
        cursor=Cursor().tensor(),
        params=params,
        buffers=buffers,
        key=torch.tensor(seed, dtype=torch.int64, device="cpu"),
        slots={},
        skeleton=skeleton,
    )


@explained
def to_module(state: State, params: str | None = None) -> Any:
    """Build the trained model: a new ``nn.Module`` (or tree) with copies of the state's tensors.

    Args:
        state: Any state.
        params: A slot to take the parameters from, such as ``"ema"``; default ``state.params``.

    Raises:
        ValueError: There is no such slot, or it holds no parameters; or the state has no running
            statistics of BatchNorm for them, which `fl.refresh_batchnorm` computes; or it is the
            state of a population.

    >>> model = torch.nn.Linear(2, 1)
    >>> torch.equal(to_module(start(model)).weight, model.weight)
    True
    """
    if state.step.ndim:
        raise ValueError(
            f"This is the state of a population of {len(state.step)}, which has no one model. Take "
            "a member: fl.to_module(fl.member(state, 0))."
        )
    return state.skeleton.build(choose_params(state, params), choose_buffers(state, params))


def as_seed(seed: Any) -> int:
    """Convert a seed to a Python int: any integer that fits an int64, NumPy's and torch's too.

    Raises:
        TypeError: It is not an integer.
        ValueError: It does not fit an int64.

    >>> as_seed(3), as_seed(torch.tensor(3))
    (3, 3)
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"A seed is an integer, got {short(seed)}.") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"The seed must fit an int64, got {number}.")
    return number
