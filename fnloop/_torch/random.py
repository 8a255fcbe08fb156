"""Seed torch's global generators inside a block, and restore their state afterwards."""

from __future__ import annotations

from typing import Any

import torch

from fnloop._torch.process_wide import ProcessWide

_CPU, _HOST = torch.default_generator, torch.device("cpu")

UNSIGNED = (1 << 64) - 1
"""``seed & UNSIGNED`` gives the same numbers; a negative seed costs an exception in C++, 10 us."""


class seeded(ProcessWide):
    """A context manager that seeds torch's generators for the CPU and for `device`.

    A thread that draws data ahead and a training step must not disturb each other.

    It takes 3 us; ``torch.random.fork_rng`` takes 145 us.
    """

    __slots__ = ("_other", "_saved", "_saved_other", "_seed")

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        self._seed = seed & UNSIGNED
        self._other = None if device is None or device == _HOST else _of(device)

    def save(self) -> None:
        self._saved = _CPU.get_state()
        if self._other is not None:
            self._saved_other = self._other.get_state()

    def change(self) -> None:
        _CPU.manual_seed(self._seed)
        if self._other is not None:
            self._other.manual_seed(self._seed)

    def restore(self) -> None:
        _CPU.set_state(self._saved)
        if self._other is not None:
            self._other.set_state(self._saved_other)


def generators(device: torch.device) -> list[torch.Generator]:
    """The generators that `seeded` seeds: those of the CPU and of `device`."""
    return [_CPU] if device.type == "cpu" else [_CPU, _of(device)]


def _of(device: torch.device) -> torch.Generator:
    module = torch.get_device_module(device)
    index: Any = device.index
    if not getattr(module, "default_generators", ()):
        module.init()
    return module.default_generators[module.current_device() if index is None else index]


def is_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of an operation of torch's draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    # Attention has the random tag even if its dropout is zero, and so have cuDNN's RNNs.
    arguments = func._schema.arguments
    named = {a.name: a.default_value for a in arguments if a.has_default_value()}
    named.update(zip([a.name for a in arguments], args, strict=False), **kwargs)
    if named.get("train") is False:
        return False
    return named.get("dropout_p", named.get("dropout")) != 0
