"""A training step that runs a module's own: manual optimization, and hooks between its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fnloop._torch.tracing import recording, transformed
from fnloop.lightning.hand import prefix_of
from fnloop.lightning.handled_call import HandledCall, HandPlan
from fnloop.lightning.training_loss import ByIdentity
from fnloop.stages.base import StepStage
from fnloop.trees.nodes import static, tree
from fnloop.values.randomness import randomness
from fnloop.values.state import State


@tree
class ByHand(StepStage):
    """Calls ``training_step`` on a copy of the module with the state's tensors, eagerly.

    What it has written there, parameters and buffers, is the new state. Optimizers are pure
    functions underneath: their memory is in the state, with the gradients that are left for the
    next batch, the number of calls that have only left some, and multipliers for `fl.scale` as
    `fl.update` has them. A call with a gradient that is not finite is skipped, all of it.

    What ``on_train_epoch_start`` sets besides tensors lasts for its epoch: it is called again at
    each batch, unless the state says that it is quiet in this epoch, as it has set nothing.

    Attributes:
        optimizers: The module's own, as optimizers here; their learning rates may be schedules.
        plan: What does not change, a `HandPlan` in a `ByIdentity`.
        name: Name of the slot.
    """

    label: ClassVar[str] = "by_hand"
    optimizers: tuple[Any, ...]
    plan: ByIdentity = static()
    name: str = "lightning"

    @property
    def _plan(self) -> HandPlan:
        return self.plan.value

    def init_state(self, state: State) -> dict[str, Any]:
        owned = self._plan.owned
        zero = torch.zeros_like(state.step)
        names = self.trained(state)
        left = {name: zero.bool() for name in names}
        one = torch.ones((), dtype=torch.float64, device=state.step.device)
        return {
            "scale": {
                prefix + name: one.clone()
                for prefix, optimizer in zip(self._prefixes, self.optimizers, strict=True)
                for name in optimizer.hyperparameters()
            },
            "memory": {
                str(i): o.init(state.params.select(own.names))
                for i, (o, own) in enumerate(zip(self.optimizers, owned, strict=True))
            },
            "steps": {str(i): zero.clone() for i in range(len(owned))},
            "schedulers": {str(i): zero.clone() for i, own in enumerate(owned) if own.counts},
            "left": {n: b.clone() for n, b in left.items()} if self._plan.manual else {},
            "grads": state.params.select(names).wide().zeros() if self._plan.manual else {},
            **({"gathering_calls": zero.clone()} if self._plan.manual else {}),
            **({"quiet": zero - 1} if self._plan.begins else {}),
        }

    def trained(self, state: State) -> tuple[str, ...]:
        owned = self._plan.owned
        found = {name for own in owned for name in own.names}
        return tuple([name for name in state.skeleton.trainable if name in found])

    def with_values(self, values: Mapping[str, Any]) -> ByHand:
        """The same with other values for hyperparameters, by the names that it reports."""
        own = [
            o.with_values({n.removeprefix(p): v for n, v in values.items() if n.startswith(p)})
            for o, p in zip(self.optimizers, self._prefixes, strict=True)
        ]
        return dataclasses.replace(self, optimizers=tuple(own))

    @property
    def _prefixes(self) -> list[str]:
        return [prefix_of(i, len(self.optimizers)) for i in range(len(self.optimizers))]

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        if recording() is not None or transformed() or state.step.ndim:
            raise RuntimeError(_EAGER.format(who=self._plan.facts.who))
        with randomness(state, "loss"), torch.enable_grad():
            return HandledCall(self._plan, self.optimizers, state, self.name).run(x)

    def describe(self) -> str:
        return f"{self._plan.facts.who}.training_step, by hand"


_EAGER = (
    "{who}.training_step steps its optimizers itself, or has hooks between the parts of a step: it "
    "is run as it is written, with torch's own backward. It cannot be compiled, vmapped "
    "(fl.sweep, fl.ensemble), or divided among ranks. Written as fl.sequence of losses, or without "
    "the hooks, it can."
)
