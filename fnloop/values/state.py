"""The state: everything that persists between steps, as one immutable pytree of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fnloop.trees.nodes import static, tree, tree_map
from fnloop.trees.show import tree_show
from fnloop.values.context import EMPTY, Context
from fnloop.values.tensors import Tensors


@tree
class State:
    """Everything that a training run carries from one step to the next.

    Every leaf is a tensor. Stages return a new `State` and never modify their input.

    Attributes:
        step: int64[]; committed optimizer steps. Schedules and averages use it.
        calls: int64[] on the CPU; calls of the training step, including skipped ones. Randomness
            depends on it. The step increments it.
        cursor: int64[3] on the CPU; the position of the next unread batch, ``(epoch, index,
            count)``: `index` is examples read in this epoch, `count` is batches drawn since the
            start. Only the loop moves it.
        params: Parameters by dotted name; tied parameters once, under their first name.
        buffers: The model's other tensors by dotted name.
        key: int64[] on the CPU; the root of all randomness. It is constant.
        slots: The memory of each stage, by its name; ``state["ema"]`` is ``state.slots["ema"]``.
        skeleton: The model's structure without its tensors; static.
        context: What a stage passes to the stages it wraps during a call. Empty outside a call;
            never saved.
    """

    step: Tensor
    calls: Tensor
    cursor: Tensor
    params: Tensors
    buffers: Tensors
    key: Tensor
    slots: dict[str, Any]
    skeleton: Any = static(None)
    context: Context = EMPTY

    def __post_init__(self) -> None:
        self.__dict__.update(_as_tensors({"params": self.params, "buffers": self.buffers}))

    def __getitem__(self, name: str) -> Any:
        try:
            return self.slots[name]
        except KeyError:
            known = ", ".join(sorted(self.slots)) or "none"
            raise KeyError(
                f"The state has no slot {name!r}; it has: {known}. A stage fills its slot in "
                "step.init(state). (fl.stage(function, kind) does not see the stages that its "
                "function calls: a stage around another is a class with the field inner.)"
            ) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; parameters and buffers may be given as dicts.

        >>> from fnloop.values.start import start
        >>> state = start(torch.nn.Linear(2, 1), seed=0)
        >>> int(state.replace(step=state.step + 1).step), int(state.step)
        (1, 0)
        """
        # dataclasses.replace takes 5 us; this runs several times per step.
        new = object.__new__(type(self))
        own = new.__dict__
        own.update(self.__dict__)
        own.update(changes)
        if type(own["params"]) is not Tensors or type(own["buffers"]) is not Tensors:
            _as_tensors(own)
        if len(own) > len(self.__dict__):
            unknown = sorted(set(changes) - set(self.__dict__))
            raise TypeError(
                f"State has no field {', '.join(unknown)}; it has: {', '.join(_FIELDS)}."
            )
        kept = own.get("_kept")
        # A compiled step's cache must not keep replaced tensors alive.
        if kept is not None and not changes.keys() <= _NOT_KEPT and not kept.holds(new):
            del own["_kept"]
        return new

    def put(self, name: str, memory: Any) -> Self:
        """A copy with `memory` in slot `name`."""
        return self.replace(slots={**self.slots, name: memory})

    def within(self, **facts: Any) -> Self:
        """A copy with some fields of its `context` changed."""
        return self.replace(context=self.context.replace(**facts))

    def apply(self, function: Callable[[Any], Any]) -> Any:
        """What ``function(model)`` returns, for the model with these parameters and buffers.

        The model is in evaluation mode. Other than in `fl.evaluate`, derivatives go through: it is
        the outer loss behind `fl.unroll`.

        Args:
            function: It is given the model, such as ``lambda model: loss(model, validation)``.

        Raises:
            ValueError: The state is a population; `fl.member` gives the state of one.

        >>> import fnloop as fl
        >>> state = fl.grad(lambda m, x: m(x).mean()).init(torch.nn.Linear(2, 1, bias=False))
        >>> def twice(params):
        ...     return 2 * state.replace(params=params).apply(lambda m: m(torch.ones(2))).sum()
        >>> dict(torch.func.grad(twice)(state.params))
        {'weight': tensor([[2., 2.]])}
        """
        from fnloop.values.randomness import randomness  # it imports this module

        if self.step.ndim:
            raise ValueError(
                f"The state is a population of {len(self.step)}, and no model has its parameters. "
                "Apply the function to each member: fl.member(state, i).apply(function)."
            )
        params = dict(self.params.items())  # one view of each: the call looks for replaced ones
        with randomness(self, "apply"):
            return self.skeleton.call(function, params, self.buffers, False)[0]

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`; cursor, calls and key stay on the CPU.

        Args:
            device: Such as ``"cuda"`` or ``torch.device("cpu")``.
        """
        moved = tree_map(lambda leaf: leaf.to(device), self)
        return moved.replace(cursor=self.cursor, calls=self.calls, key=self.key)

    def __getstate__(self) -> dict[str, Any]:
        # Leave out what a compiled step caches on the state.
        return {name: value for name, value in self.__dict__.items() if name in _FIELDS}

    def __repr__(self) -> str:
        return tree_show(self, depth=3)


_NOT_KEPT = frozenset(("cursor", "context"))
_FIELDS = tuple(field.name for field in dataclasses.fields(State))


def _as_tensors(fields: dict[str, Any]) -> dict[str, Any]:
    for name in ("params", "buffers"):
        value = fields.get(name)
        if type(value) is not Tensors and isinstance(value, Mapping):
            fields[name] = Tensors(value)
    return fields
