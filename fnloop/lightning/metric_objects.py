"""Objects of torchmetrics that a module keeps: what a call leaves in them, as values."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from fnloop.metrics.adapter import MetricTemplate, Torchmetric, filled, keep_apart, taken


def is_metric(value: Any) -> bool:
    """Whether a value is a torchmetrics object, which has states."""
    return isinstance(value, nn.Module) and hasattr(value, "_defaults") and hasattr(value, "update")


class MetricObjects:
    """The torchmetrics objects of a module, by the path where it keeps them.

    Members of a collection are updated by themselves: to find out which of them share their states
    torchmetrics compares values, and here each call begins anew.

    Args:
        module: A copy of the user's module. Its collections are changed, and its objects no longer
            merge with those of other ranks, which fnloop does.
    """

    def __init__(self, module: nn.Module) -> None:
        self.templates: dict[str, MetricTemplate] = {}
        for path, child in module.named_modules():
            if hasattr(child, "_enable_compute_groups"):
                vars(child)["_enable_compute_groups"] = False
            if is_metric(child):
                keep_apart(child)
                self.templates[path] = MetricTemplate(child)

    def reader(self, module: nn.Module) -> Any:
        """A function that makes a metric of one of the objects of `module`, as it stands."""
        paths = {id(module.get_submodule(path)): path for path in self.templates}
        return lambda value: taken(value, self.templates[paths[id(value)]])

    def updated(self, module: nn.Module) -> dict[str, Torchmetric]:
        """What has been updated since the objects of `module` were new, by path."""
        found = {path: module.get_submodule(path) for path in self.templates}
        return {
            path: taken(value, self.templates[path])
            for path, value in found.items()
            if value._update_count
        }

    def fill(self, module: nn.Module, states: dict[str, Torchmetric]) -> None:
        """Put states into the objects of a copy, as if these had been updated so."""
        for path, metric in states.items():
            filled(module.get_submodule(path), metric)


def to_device(module: nn.Module, device: torch.device) -> None:
    """Move what torchmetrics' objects keep, which are neither parameters nor buffers."""
    for child in module.modules():
        if is_metric(child) and child.device != device:  # type: ignore[union-attr]
            child.to(device)


@contextlib.contextmanager
def put_back(module: nn.Module, device: torch.device) -> Generator[None]:
    """Put back what torchmetrics' objects keep, and modes, after a call that has read them.

    A frozen backbone is often put into evaluation mode in each call.

    Args:
        module: The module.
        device: Where the objects are meanwhile.
    """
    modes = [(m, m.training) for m in module.modules()]
    own = [m for m, _ in modes if type(m).__module__.startswith("torchmetrics")]
    before = [(vars(m), dict(vars(m)), dict(vars(m).get("_defaults", {}))) for m in own]
    try:
        for child in own:
            for name in vars(child).get("_defaults", ()):  # some write to their states in place
                state = vars(child)[name]
                vars(child)[name] = list(state) if isinstance(state, list) else state.clone()
        to_device(module, device)
        yield
    finally:
        for child, training in modes:
            child.training = training
        for now, old, defaults in before:
            now.clear()
            now.update(old)
            if defaults:
                old["_defaults"].update(defaults)
