"""Averaged parameters of a state, and the running statistics that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def choose_params(state: State, name: str | None) -> Tensors:
    """``state.params``, with those replaced that slot `name` holds an average of.

    An average may also be kept by optimizers of that name, in their memory as ``"average"``. The
    result has the dtypes of ``state.params``. `name` None means no replacement.

    Raises:
        ValueError: There is no such slot, or it holds no parameters; or two optimizers keep an
            average of one parameter.
    """
    if name is None:
        return state.params
    averaged = _averaged(state, name)
    if averaged is None:
        raise ValueError(
            f"params={name!r}: the state has no such slot; it has: "
            f"{', '.join(sorted(state.slots)) or 'none'}. The usual cause is a pipeline without "
            "the stage that averages: add fl.ema(0.999) after fl.update(...)."
        )
    if not isinstance(averaged, Mapping) or not set(averaged) <= set(state.params):
        raise ValueError(
            f"params={name!r}: that slot holds no parameters. Name the slot of an average, such as "
            '"ema".'
        )
    found = {name: averaged.get(name, p).to(p.dtype) for name, p in state.params.items()}
    return Tensors(found)


def _averaged(state: State, name: str) -> Any:
    """The slot `name`, or the averages that optimizers of that name keep; None if neither."""
    if name in state.slots:
        return state.slots[name]
    found: dict[str, Tensor] = {}
    for memory in state.slots.values():
        for key, own in memory.items() if isinstance(memory, dict) else ():
            # Behind the label of `fl.optim.by_label`.
            if f".{key}".endswith(f".{name}") and isinstance(own, dict) and "average" in own:
                if twice := found.keys() & own["average"].keys():
                    raise ValueError(
                        f"params={name!r}: two optimizers of that name keep an average of "
                        f"{min(twice)}. Give one of them another: "
                        'fl.optim.schedule_free(..., name="other").'
                    )
                found.update(own["average"])
    return found or None


def choose_buffers(state: State, name: str | None) -> Tensors:
    """``state.buffers``, with the running statistics of BatchNorm that belong to average `name`.

    Raises:
        ValueError: The state has none for the average as it is now.
    """
    if name is None or not state.skeleton.statistics:
        return state.buffers
    if not has_statistics(state, name):
        there = state.slots.get(_slot(name))
        of = (
            "the state's own belong to the live parameters"
            if there is None
            else f"those in slot {_slot(name)!r} belong to the average as it was "
            f"{int(state.calls) - int(there['calls'])} calls ago"
        )
        raise ValueError(
            f"params={name!r}: these averaged parameters have no running statistics of BatchNorm; "
            f"{of}. With those of others a model may be no better than chance. Compute them from "
            f"training data: state = fl.refresh_batchnorm(loss, state, train_data, params={name!r})"
            "; fl.evaluate and fl.validate do so by themselves, given statistics=train_data. To "
            'have those that are there all the same, give them statistics="live".'
        )
    return state.buffers.like({**state.buffers, **state.slots[_slot(name)]["buffers"]})


def has_statistics(state: State, name: str) -> bool:
    """Whether the state has running statistics for average `name` as it is now."""
    there = state.slots.get(_slot(name))
    return there is not None and int(there["calls"]) == int(state.calls)


def put_statistics(state: State, name: str | None, found: Mapping[str, Tensor]) -> State:
    """A state with running statistics, by buffer, for average `name`; None: for the live ones."""
    if name is None:
        return state.replace(buffers=state.buffers.like({**state.buffers, **found}))
    # A step moves `calls`, and so an average that has moved on has none.
    return state.put(_slot(name), {"buffers": Tensors(found), "calls": state.calls.clone()})


def _slot(name: str) -> str:
    return f"{name}.statistics"
