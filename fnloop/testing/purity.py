"""A step changes nothing that it is given, nor anything else: as a check."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fnloop.testing.comparison import LawError, Step, copy_of, name_of
from fnloop.trees.equal import tree_diff, tree_equal
from fnloop.trees.paths import tree_items
from fnloop.values.module_copy import private_copy
from fnloop.values.module_parts import ModuleParts
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.module_watch import ModuleWatch
from fnloop.values.state import State


def check_pure(step: Step, state: State, x: Any, model: nn.Module | None = None) -> None:
    """Law 1: a stage changes neither inputs, nor global random state, nor the user's module.

    Besides tensors it looks at what modules keep otherwise (attributes, hooks, lists, dicts), also
    in the state's private module; and at the global generators of torch, Python and NumPy.

    Args:
        step: Any stage, or a function with the same signature.
        state: Its state.
        x: Its input: a batch, or metrics.
        model: The module that the state was made from, to check too.

    Raises:
        LawError: With the leaves that changed.

    >>> def bad(state, batch):
    ...     state.params["weight"].add_(1.0)
    ...     return state, {}
    >>> from fnloop.values.start import start
    >>> check_pure(bad, start(nn.Linear(2, 1)), None)
    Traceback (most recent call last):
    ...
    fnloop.testing.comparison.LawError: law 1, purity: bad changed its input in place: params/weight
    """
    watched: dict[str, Any] = {"state": state, "x": x}
    if model is not None:
        watched["model"] = dict(model.state_dict(keep_vars=True))
    before = copy_of(watched)
    versions = _versions(watched)
    modules = _watched_modules(state, model)
    generators = _generators()
    step(state, x)
    touched = [path for path, version in _versions(watched).items() if version != versions[path]]
    if touched or not tree_equal(before, watched):
        changed = touched or [
            line.split()[0] for line in tree_diff(before, watched).splitlines()[1:]
        ]
        names = ", ".join(path.removeprefix("state/") for path in changed)
        raise LawError(f"law 1, purity: {name_of(step)} changed its input in place: {names}")
    for place, watch in modules.items():
        names = ", ".join(watch.changed())
        if names:
            raise LawError(
                f"law 1, purity: {name_of(step)} changed what {place} keeps outside of its "
                f"parameters and buffers: {names}"
            )
    for place, generator in _generators().items():
        if generator != generators[place]:
            raise LawError(
                f"law 1, purity: {name_of(step)} changed the global random state of {place}; "
                "randomness is a function of (state.key, state.calls): draw with torch, inside "
                'with fl.randomness(state, "name"), or in an optimizer that says draws = True'
            )


def _watched_modules(state: State, model: nn.Module | None) -> dict[str, ModuleWatch]:
    """What tells of changes outside of tensors: in the state's own module, and in the user's."""
    watches: dict[str, ModuleWatch] = {}
    if isinstance(state.skeleton, ModuleSkeleton):
        watches["the state's module"] = state.skeleton.watching()
    if model is not None:
        tensors = (*model.parameters(), *model.buffers())
        _, originals = private_copy(model)
        copied = {id(original) for original in originals.values()}
        parts = ModuleParts(model, {id(tensor): "" for tensor in tensors}, copied)
        watches["the module"] = ModuleWatch(parts, type(model).__name__)
    return watches


def _generators() -> dict[str, str]:
    """The states of the global generators of random numbers."""
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "Python (random)": str(random.getstate()),
        "NumPy": str(np.random.get_state(legacy=False)),
    }


def _versions(value: Any) -> dict[str, int]:
    return {path: leaf._version for path, leaf in tree_items(value) if isinstance(leaf, Tensor)}
