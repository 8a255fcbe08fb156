"""What a hook changes on a copy of the module, and what of it lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fnloop.lightning.kept_attributes import (
    attributes_kept,
    changed,
    emptied,
    objects_in,
    settings_kept,
)
from fnloop.trees.equal import tree_equal
from fnloop.values.stacked import side_by_side
from fnloop.values.state import State


class Lasting:
    """Looks at a copy of the module before its hooks are called, and again after that.

    Parameters and buffers last: they are put into the state. Of attributes the user is told that
    they do not, as nobody knows whether they are read later. What decides how the next step is
    computed is refused.

    Args:
        module: The copy.
        state: What it was made of.
        hook: What is called, for messages.
        modes: Whether training and evaluation modes are to last.

    Attributes:
        hook: As given.
        before: The state, as given.
    """

    def __init__(self, module: Any, state: State, hook: str, modes: bool = True) -> None:
        self.hook, self.before = hook, state
        self._module, self._modes = module, modes
        self._attributes, self._objects = attributes_kept(module), objects_in(module)
        self._anew = set[str]()
        self._settings = settings_kept(module, modes)

    def begin(self) -> None:
        """Note what has been emptied so far: it begins anew each time, and need not last."""
        self._anew = emptied(self._module, self._objects)

    def state(self) -> State:
        """The state with the parameters and buffers as they are on the copy, if they differ."""
        state, module = self.before, self._module
        now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        before = {**state.params, **state.buffers}
        new = {name: self._checked(name, now.get(name), old) for name, old in before.items()}
        self.check_settings()
        names = changed(self._attributes, attributes_kept(module))
        state.skeleton.watching().tell([name for name in names if name not in self._anew])
        if tree_equal(new, before):
            return state
        return state.replace(
            params=state.params.like({name: new[name] for name in state.params}),
            buffers=state.buffers.like({name: new[name] for name in state.buffers}),
        )

    def check_settings(self, first: Mapping[str, Any] | None = None) -> None:
        """Refuse that it has changed how the next step is computed.

        Args:
            first: The settings that each step begins with, if it may put these back.

        Raises:
            RuntimeError: It has.
        """
        if names := changed(self._settings, settings_kept(self._module, self._modes), first):
            raise RuntimeError(
                f"{self.hook} changes {', '.join(names[:4])}{', ...' if names[4:] else ''}, and "
                "that would be lost: the next step begins with what was set at first. Set it in "
                "on_train_epoch_start, each time, as a function of the epoch: "
                "self.net.requires_grad_(self.current_epoch >= 3)."
            )

    def _checked(self, name: str, now: Tensor | None, old: Tensor) -> Tensor:
        if now is None or now.shape != old.shape or now.dtype != old.dtype:
            raise RuntimeError(
                f"{self.hook} takes {name!r} away, or gives it another shape or dtype. What is "
                "trained keeps its shape: write to it in place (p.copy_(new), p.mul_(mask))."
            )
        return now.detach()


def with_lasting(state: State, found: Sequence[Lasting]) -> State:
    """The state with what has changed on a copy of it; of a population, on copies of its members.

    Raises:
        ValueError: Something has, and the parameters are divided among ranks.
    """
    new = [each.state() for each in found]
    if all([own is each.before for own, each in zip(new, found, strict=True)]):
        return state
    if state.params.layout.mesh is not None:
        raise ValueError(
            f"{found[0].hook} changes parameters or buffers, and here parameters are divided among "
            'ranks. Divide less, fl.shard(run.step, fl.mesh(), "zero2"), or leave the hook out.'
        )
    params, buffers = side_by_side([(own.params, own.buffers) for own in new], state)
    return state.replace(params=params, buffers=buffers)
