"""A profile of steps on the device."""

from __future__ import annotations

import torch

import fnloop as fl

from .problems import Net, backend, batches, everything, simple, started


def profiled(device: str) -> None:
    """A profile changes nothing, and its parts are there."""
    for step in (simple(), everything(), fl.compile(simple(), backend=backend(device))):
        state = started(step, Net, device)
        before = fl.tree_map(torch.clone, state)
        found = fl.profile(step, state, batches(3, device), steps=3)
        assert fl.tree_equal(state, before), fl.tree_diff(state, before)
        assert found.device == device and found.peak > 0 and found.memory, found
        assert found.stages and found.modules and found.operators, found
        assert {"first", "head"} <= {module.path for module in found.modules}, found
        assert 0 < found.seconds < 60 and 0 <= found.waiting < found.seconds, found
        if device == "cuda" and not found.compiled:
            most = max(size for _, size in found.memory)
            assert abs(found.peak - most) < 0.5 * most, (found.peak, most)
            assert not any(each.name.startswith("aten::") for each in found.operators), found
