"""Call an optimizer on tensors that are divided among ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from fnloop.values.choice import Flag
from fnloop.values.placing import map_divided
from fnloop.values.tensors import Tensors

if TYPE_CHECKING:
    from fnloop.optim.base import Memory, Optimizer, Step

Made: TypeAlias = "tuple[Tensors, Memory]"


def updates_of(
    optimizer: Optimizer, grads: Tensors, memory: Memory, params: Tensors, step: Step
) -> Made:
    """``optimizer.update``, which is given whole tensors if it needs them."""
    if params.layout.mesh is None or optimizer.by_value:
        return optimizer.update(grads, memory, params, step)

    def call(g: Tensors, own: Memory, p: Tensors) -> Made:
        return optimizer.update(g, own, p, step)

    return _on_whole(optimizer, call, grads, memory, params)


def applied(
    optimizer: Optimizer, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
) -> Made:
    """``optimizer.apply``, which is given whole tensors if it needs them."""
    if params.layout.mesh is None or optimizer.by_value:
        return optimizer.apply(grads, memory, params, step, finite)

    def call(g: Tensors, own: Memory, p: Tensors) -> Made:
        return optimizer.apply(g, own, p, step, finite)

    return _on_whole(optimizer, call, grads, memory, params)


def _on_whole(
    optimizer: Optimizer,
    call: Callable[[Tensors, Memory, Tensors], Made],
    grads: Tensors,
    memory: Memory,
    params: Tensors,
) -> Made:
    own = {name: memory[name] for name in optimizer.names()}
    made, new = call(grads.whole(), map_divided(Tensors.whole, own), params.whole())
    return params.like(made), {**memory, **_divided(new, own)}


def _divided(new: Any, old: Any) -> Any:
    """The memory `new`, divided where `old` is."""
    if isinstance(old, Tensors):
        return new if old.layout.mesh is None else old.like(new)
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _divided(value, old.get(key)) for key, value in new.items()}
    return new
