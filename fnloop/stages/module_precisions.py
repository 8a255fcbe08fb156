"""Precisions of modules in a model, by their names."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fnloop.optim.patterns import matches
from fnloop.trees.nodes import tree_map
from fnloop.trees.show import short
from fnloop.values.context import no_casting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes of autocast by the names of precisions; float32 is none."""

_OWN = object()


class ModulePrecisions(dict[str, str]):
    """Precisions by the names of modules, or by globs; where several fit a module, the last counts.

    Unlike other dicts it is part of a stage's structure: it is hashed, and its order counts.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, ModulePrecisions)
        return same and [*self.items()] == [*other.items()]

    def __ne__(self, other: object) -> bool:
        return not self == other

    @contextlib.contextmanager
    def running(self, model: Any, device: torch.device) -> Generator[None]:
        """A context manager for the forward and backward pass of `model`.

        Inside, the modules are called in their precision: ``forward`` is another.

        Raises:
            TypeError: `model` has no modules.
            ValueError: A pattern fits none.
        """
        replaced: list[tuple[dict[str, Any], Any]] = []
        try:
            for module, own in self._chosen(model):
                call = functools.partial(_call, module.forward, DTYPES[own], device)
                replaced.append((module.__dict__, module.__dict__.get("forward", _OWN)))
                module.__dict__["forward"] = call
            yield
        finally:
            for attributes, before in replaced:
                if before is _OWN:
                    attributes.pop("forward", None)
                else:
                    attributes["forward"] = before

    def _chosen(self, model: Any) -> list[tuple[nn.Module, str]]:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"amp(modules=...) names modules, and the model {short(model)} is a tree, which "
                "has none: write torch.autocast in its __call__."
            )
        named = {name: module for name, module in model.named_modules() if name}
        found: dict[str, str] = {}
        for pattern, own in self.items():
            fits = [name for name in named if _fits(name, pattern)]
            if not fits:
                some = ", ".join([*named][:20]) + (", ..." if len(named) > 20 else "")
                raise ValueError(
                    f"amp(modules=...): {pattern!r} fits no module. It is a module's name, or a "
                    f"glob such as '*.norm*'. There are: {some or 'none'}."
                )
            found.update(dict.fromkeys(fits, own))
        return [(named[name], own) for name, own in found.items()]


def as_modules(modules: Any) -> ModulePrecisions | None:
    """From what `fl.amp` is given; None if there are none.

    Raises:
        TypeError: It is no mapping with texts as keys.
    """
    if isinstance(modules, ModulePrecisions):
        return modules
    if modules is not None and not (
        isinstance(modules, Mapping) and all([isinstance(name, str) for name in modules])
    ):
        raise TypeError(
            "amp(modules=...) takes precisions by the names of modules, such as "
            f'{{"head": "fp32", "*.norm*": "fp32"}}; got {short(modules)}.'
        )
    return ModulePrecisions(modules) if modules else None


def within(
    modules: ModulePrecisions | None, model: Any, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """`ModulePrecisions.running`, if there are any."""
    return contextlib.nullcontext() if modules is None else modules.running(model, device)


def _fits(name: str, pattern: str) -> bool:
    """Whether it is the module itself: what it calls runs in its precision anyway."""
    return matches(name, pattern) if "*" in pattern else name == pattern


def _call(
    forward: Callable[..., Any], dtype: torch.dtype, device: torch.device, *args: Any, **kwargs: Any
) -> Any:
    """Call a module's ``forward`` in a precision.

    Where there is no autocast, nothing is in half precision: neither what a module in float32 is
    given, nor what another gives back to it.
    """
    if dtype is torch.float32:
        with no_casting(device):
            wide = {name: tree_map(_wide, value) for name, value in kwargs.items()}
            return forward(*tree_map(_wide, args), **wide)
    # The cache of converted weights does not tell bfloat16 from float16 for a weight used in both.
    with torch.autocast(device.type, dtype=dtype, cache_enabled=False):
        result = forward(*args, **kwargs)
    return result if torch.is_autocast_enabled(device.type) else tree_map(_wide, result)


def _wide(leaf: Any) -> Any:
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
    return leaf.float() if half else leaf
