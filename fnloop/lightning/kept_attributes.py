"""What a module keeps on itself besides tensors, at a glance."""

from __future__ import annotations

from typing import Any

from torch import nn


def attributes_kept(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of the user's modules: containers by their lengths, others by their ids.

    Two of these, from before and after a call, differ in what the call has changed.

    >>> class Counts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.seen = []
    >>> attributes_kept(Counts())
    {'seen': 0}
    """
    found: dict[str, Any] = {}
    for path, child in module.named_modules():
        if type(child).__module__.startswith(("torch.", "torchmetrics")):
            continue
        for name, value in vars(child).items():
            if name.startswith("_") or name == "training":
                continue
            own = len(value) if isinstance(value, (list, dict, set)) else id(value)
            found[f"{path}.{name}" if path else name] = own
    return found
